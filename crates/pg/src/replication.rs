//! The streaming replication protocol: logical replication over the wire.
