//! PostgreSQL as the platform meets it: connections, catalog reads, control of servers.
//!
//! Invariants: a connection that is given TLS never falls back to plain text; a password never
//! stands on a command line or in an environment; a server never runs as root; a data directory
//! is either whole or recognisably unfinished.
//! Non-goals: deciding what a server should be (that is the cluster's), SQL of users.

pub mod base_backup;
pub mod binaries;
pub mod catalog;
pub mod connect;
pub mod control_file;
pub mod diagnose;
pub mod error;
pub mod hba;
pub mod process;
pub mod process_table;
pub mod replication;
pub mod rewind;
pub mod roles;
pub mod run_as;
pub mod server;
pub mod settings;
pub mod slots;

pub use binaries::Binaries;
pub use connect::{ConnectParams, Connection, connect};
pub use error::{PgError, ServerError};
pub use hba::{HbaDatabase, HbaRule, HbaSource};
pub use process::{Postmaster, Processes, StopMode};
pub use run_as::RunAs;
pub use server::ServerSpec;
pub use settings::Setting;
