//! The proxy before a real PostgreSQL: what clients see through it is what they would see without it, and nothing of one
//! client is there for another.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod admin;
mod counts;
mod drivers;
mod extended;
mod faults;
mod harness;
mod isolation;
mod kill;
mod logins;
mod pooling;
mod reload;
mod routing;
mod rust;
mod suites_found;
mod topology;
