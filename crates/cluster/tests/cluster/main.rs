//! Clusters of real servers: made, broken in every way that is promised to be survived, stopped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test that is not run says so, and others what they measured")]

mod agents;
mod damage;
mod disks;
mod failover;
mod harness;
mod lifecycle;
mod nodes;
mod parts;
mod refusals;
mod reload;
