//! Throw-away PostgreSQL servers for tests.
//!
//! [`TestServer`] is a running server with TLS, SCRAM and `wal_level = logical`, copied from a
//! template that is made once for each machine and user. [`Sandbox`] is the folder that tests
//! with servers of their own work in: when it is dropped, or the test process dies in any way,
//! every process that works inside it is ended and the folder removed.
//! Non-goals: speed of the servers (`fsync` is off), anything that ships.

#[cfg(feature = "s3")]
mod bucket;
mod data;
mod sandbox;
mod server;
mod template;
mod wait;

#[cfg(feature = "s3")]
pub use bucket::{Bucket, Faults};
pub use data::data_set;
pub use sandbox::Sandbox;
pub use server::{TestServer, TestServerBuilder};
pub use wait::{free_port, wait_until};

/// The password of the superuser `postgres` of every [`TestServer`].
pub const PASSWORD: &str = "throw-away";
