//! The embedded warehouse: DuckDB behind the contracts `Sink` (writing) and `Reader` (asking).
//!
//! Invariants: one writer; a batch is one transaction of raw history, staging, models, run record and
//! watermark; nothing here knows a domain, all of it comes from the models.

mod batch;
mod build;
mod convert;
pub mod engine;
pub mod error;
mod force;
mod index;
pub mod reader;
mod records;
mod schema_change;
mod statement;
mod table;
mod thread;
mod time_text;
mod unchanged;
pub mod writer;

pub use engine::{Engine, EngineOptions, Session};
pub use error::WarehouseError;
pub use force::{HeldModel, Kept};
pub use writer::{Built, DuckSink, InForce, WriterHandle, plan_models, verify_built, verify_models};
