//! PostgreSQL's replication messages and COPY text: bytes ⇄ types.
//!
//! Invariants: no I/O; no input makes anything here panic or allocate more than the input is long;
//! what is decoded borrows from the input.
//! Non-goals: connections and authentication (the `pg` crate), the meaning of values.

#![deny(clippy::indexing_slicing)]

pub mod copy_text;
mod cursor;
pub mod pgoutput;
pub mod stream;

pub use cursor::DecodeError;
