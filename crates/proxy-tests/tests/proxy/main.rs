//! The proxy before a real PostgreSQL: what clients see through it is what they would see without it, and nothing of one
//! client is there for another.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod admin;
mod cancels;
mod counts;
mod extended;
mod faults;
mod isolation;
mod kill;
mod logins;
mod pooling;
mod reload;
mod routing;
mod suites_found;
mod topology;
