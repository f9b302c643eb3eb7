//! Whole platforms, run as a user runs them: the real binary, real servers, real files.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on fails there, and its output is for whoever reads why"
)]

mod backup;
mod backup_faults;
mod bad_input;
mod berka;
mod browser;
mod clock;
mod copies;
mod crash;
mod disk;
mod dumps;
mod failover;
mod harness;
mod hosts;
mod in_place;
mod lan;
mod many_hosts;
mod models;
mod network;
mod nodes;
mod proofs;
mod proxy;
mod settings;
mod source_changes;
mod wal_fetch;
mod whole_path;
