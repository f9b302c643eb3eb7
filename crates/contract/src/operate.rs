//! What the console and the command line ask of the running platform.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    backups::{Backups, RestorePlan},
    cluster::Entry,
    status::{PlatformStatus, RunStatus},
};

/// One promise that `verify` looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

/// One table (or model) compared by `prove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub what: String,
    pub rows_source: u64,
    pub rows_warehouse: u64,
    pub differing: u64,
    /// Some of the keys that differ, with how.
    pub examples: Vec<String>,
}

/// What `prove` found: the warehouse against the source at one position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub lsn: millrace_base::Lsn,
    pub duration_ms: u64,
    pub tables: Vec<Compared>,
    /// As they are built, whatever is declared now.
    pub models: Vec<Compared>,
    /// What was not compared, and where declarations differ from what is built.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Proof {
    /// Nothing differs.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.tables.iter().chain(&self.models).all(|c| c.differing == 0)
    }
}

/// An operation could not be done: what happened and what to do.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct OperateError {
    pub message: String,
    pub hint: Option<String>,
}

/// The running platform.
pub trait Operator: Send + Sync + std::fmt::Debug {
    fn status(&self) -> BoxFuture<'_, PlatformStatus>;
    /// The newest load runs first.
    fn runs(&self, limit: usize) -> BoxFuture<'_, Result<Vec<RunStatus>, OperateError>>;
    /// What happened to the cluster, the newest first.
    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, OperateError>>;
    fn verify(&self) -> BoxFuture<'_, Result<Vec<Check>, OperateError>>;
    fn prove(&self) -> BoxFuture<'_, Result<Proof, OperateError>>;
    /// What can be restored; `None` where no backups are made. It may be some seconds old.
    fn backups(&self) -> BoxFuture<'_, Result<Option<Backups>, OperateError>>;
    /// What a restore to this moment would take.
    fn restore_plan(&self, at: millrace_base::Micros) -> BoxFuture<'_, Result<RestorePlan, OperateError>>;
    /// A fresh copy of one table, ending its quarantine.
    fn resync(&self, table: &str) -> BoxFuture<'_, Result<(), OperateError>>;
}
