//! A pack's sample data and simulated customers.
//!
//! [`load_sample`] runs the pack's generator, [`load_files`] copies files of the real world and maps
//! them by the pack's SQL, [`simulate()`] acts as live customers. This crate knows no domain: what the
//! rows are is in the pack's `generate/` and `simulate/`.
//! Invariants: a load is one transaction; the same parameters and seed give the same rows, and the same
//! choices in the same order; a simulated transaction whose end is not known is never repeated.
//! Non-goals: benchmarks.

mod error;
mod load;
mod operation;
mod simulate;

pub use error::WorkloadError;
pub use load::{Loaded, SampleOptions, load_files, load_sample};
pub use simulate::{Counts, Progress, Simulation, simulate};
