//! The ground every other crate stands on: positions, time, tasks, files, sockets, secrets.
//!
//! Invariants: nothing here talks to a database; nothing here reads the environment;
//! wall-clock time is read in [`clock`] only, so that whatever decides can be simulated.

pub mod backoff;
pub mod clock;
pub mod failpoint;
pub mod files;
pub mod ident;
pub mod lsn;
pub mod secret;
pub mod sockets;
pub mod task;
pub mod tls;

pub use backoff::Backoff;
pub use clock::{Clock, Micros, SystemClock};
pub use ident::Ident;
pub use lsn::Lsn;
pub use secret::Secret;
pub use task::Tasks;
