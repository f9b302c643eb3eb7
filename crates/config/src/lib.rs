//! What a person writes, read strictly: `millrace.toml`, `secrets.toml`, packs, the environment.
//!
//! Invariants: parse → validate → an immutable value that is passed down; nothing unknown is
//! ignored; every mistake names its file and place; the environment is read in [`Environment`] and
//! nowhere else. Uses `contract` for the types of reports, which the console shows as they are.
//! Not here: models (the model crate parses their text) and anything that asks a server.

mod config;
mod diagnostic;
pub mod edit;
mod environment;
mod error;
mod init;
pub mod pack;
mod schema;
mod secrets;
mod table;
mod units;

pub use config::{
    Backup, BackupRepository, Capture, Cluster, Config, Console, Durability, Engine, Etcd, FILE_NAME, Node, Platform,
    PoolMode, PoolSettings, Postgres, Proxy, ProxyDatabase, ProxyUser, Warehouse,
};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use environment::Environment;
pub use error::ConfigError;
pub use init::{InitOptions, InitReport, fallback_data_dir, init};
pub use pack::Pack;
pub use schema::reference;
pub use secrets::Secrets;
pub use units::format_size;
