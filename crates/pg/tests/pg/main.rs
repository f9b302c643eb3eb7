//! Connections, catalogs and control of servers, on real servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog;
mod connecting;
mod control;
