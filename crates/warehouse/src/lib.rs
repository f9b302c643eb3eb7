//! The embedded warehouse: DuckDB behind the contracts `Sink` (writing) and `Reader` (asking).
//!
//! Invariants: one writer; a batch is one transaction of raw history, staging, models, run record and
//! watermark; nothing here knows a domain, all of it comes from the models.

pub mod engine;
pub mod error;
pub mod reader;

pub use engine::{Engine, EngineOptions};
pub use error::WarehouseError;
