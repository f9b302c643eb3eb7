//! Star-schema declarations → plan → SQL (pure).
mod error;
pub use error::ModelError;
