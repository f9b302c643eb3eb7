//! Backups of real servers. One program, because each takes long to link.
#![allow(unreachable_pub, reason = "what the modules of a test share")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it expects")]

mod azure;
mod base;
mod chain;
mod common;
mod contents;
mod over;
mod round_trip;
mod s3;
mod several;
mod unhappy;
