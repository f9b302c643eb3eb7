//! The settings and ways in that every server of a cluster has, each with its reason.
//!
//! Primary and replicas have the same settings: any of them may be the primary one day, and a
//! replica must not be configured smaller than its primary (manual, "Hot Standby").

use std::{collections::BTreeSet, net::IpAddr};

use millrace_pg::{HbaDatabase, HbaRule, HbaSource, Setting};

use crate::spec::{ClusterSpec, Limits, REPLICATOR, SUPERUSER};

/// Nodes that there can be before servers need a restart for more.
const ROOM: usize = 8;

/// What the platform decides; the user's own come after these and win.
#[must_use]
pub fn of_platform(limits: &Limits, nodes: usize) -> Vec<Setting> {
    // so that a node that is added needs no restart of the others
    let nodes = nodes.max(ROOM);
    let senders = nodes.saturating_mul(2).saturating_add(8).to_string();
    let slots = nodes.saturating_add(12).to_string();
    vec![
        set("wal_level", "logical", "changes are captured for the warehouse by logical replication"),
        set("max_wal_senders", &senders, "for each node a replica and a base backup, and some for capture"),
        set("max_replication_slots", &slots, "a slot for each node, some for capture and its comparisons"),
        set(
            "max_slot_wal_keep_size",
            format!("{}MB", limits.max_slot_wal_keep_mb),
            "a slot whose user is away must not fill the disk: past this it is given up, and said so",
        ),
        set("wal_keep_size", "128MB", "a replica whose slot was dropped by hand can still catch up"),
        set("wal_sender_timeout", "30s", "a replica that hangs must not hold up the primary's stop for longer"),
        set("wal_receiver_timeout", "30s", "a primary that hangs is noticed"),
        set("wal_retrieve_retry_interval", "500ms", "a replica is back soon after its primary; the default is 5 s"),
        set(
            "tcp_keepalives_idle",
            "4",
            "who was cut off within a transaction holds its locks for some eight seconds; one that was being answered is ended as soon by the platform",
        ),
        set("tcp_keepalives_interval", "2", ""),
        set("tcp_keepalives_count", "2", "no tcp_user_timeout: it would also cut who reads slowly"),
        set("hot_standby", "on", "replicas can be read"),
        set(
            "hot_standby_feedback",
            "on",
            "long reads on a replica are not cancelled; the price is that they delay vacuum on the primary",
        ),
        set("synchronous_commit", "on", "a commit is on the primary's disk when it is acknowledged"),
        set("shared_buffers", format!("{}MB", limits.shared_buffers_mb), ""),
        set("max_connections", limits.max_connections.to_string(), ""),
        set("max_wal_size", "4GB", "checkpoints come by time, not by volume, under usual load"),
        set("min_wal_size", "256MB", ""),
        set("checkpoint_timeout", "10min", "fewer full page images; recovery takes longer, but seconds"),
        set("checkpoint_completion_target", "0.9", "its writes are spread"),
        set("wal_compression", "on", "full page images are smaller; log is shipped to every replica"),
        set("log_line_prefix", "%m [%p] %q%u@%d %a ", "time, process, role, database, program"),
        set("log_timezone", "UTC", "logs of all nodes and the platform can be laid side by side"),
        set("log_checkpoints", "on", ""),
        set("log_lock_waits", "on", "who waited for whom longer than deadlock_timeout"),
        set("log_autovacuum_min_duration", "10s", ""),
        set("log_statement", "none", "statements hold values of rows"),
        set("log_parameter_max_length", "0", "values of rows are not logged"),
        set("log_parameter_max_length_on_error", "0", "values of rows are not logged"),
        set("log_min_duration_statement", "-1", "statements hold values of rows"),
        set("log_min_error_statement", "panic", "statements hold values of rows"),
        set("log_error_verbosity", "terse", "DETAIL lines hold values of rows"),
        set("timezone", "UTC", "what is stored and shown does not depend on the machine"),
        set("track_io_timing", "on", ""),
        set("restart_after_crash", "on", "a crashed session's server recovers by itself, at once"),
    ]
}

fn set(name: &str, value: impl Into<String>, why: &str) -> Setting {
    Setting::new(name, value, why)
}

/// Who may come in: the platform itself and the replicas from this host and those of the other nodes, then those given.
#[must_use]
pub fn hba(spec: &ClusterSpec) -> Vec<HbaRule> {
    let mut sources = vec![HbaSource::SameHost];
    if spec.agent.is_some() {
        let hosts: BTreeSet<&str> = spec.nodes.iter().map(|node| node.host.as_str()).collect();
        sources.extend(hosts.into_iter().map(|host| match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => HbaSource::Cidr(format!("{address}/32")),
            Ok(IpAddr::V6(address)) => HbaSource::Cidr(format!("{address}/128")),
            Err(_) => HbaSource::Host(host.to_owned()),
        }));
    }
    let from = |database: HbaDatabase, role: &'static str| {
        sources.iter().map(move |source| HbaRule::new(database.clone(), role, source.clone()))
    };
    let own = from(HbaDatabase::All, SUPERUSER).chain(from(HbaDatabase::Replication, REPLICATOR));
    own.chain(spec.hba.iter().cloned()).collect()
}
