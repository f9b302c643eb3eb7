//! Clusters of real servers: made, broken in every way that is promised to be survived, stopped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agents;
mod damage;
mod failover;
mod harness;
mod lifecycle;
mod refusals;
