//! The running platform: everything started in order, watched, and ended in the opposite order.

pub(crate) mod agent;
mod api;
mod archive;
mod cluster;
mod models;
mod observe;
mod operator;
pub(crate) mod prepare;
mod proxy;
mod reload;
mod restorable;
mod run;
mod serve;

pub(crate) use archive::SLOT as ARCHIVE_SLOT;
pub(crate) use cluster::{ClusterView, ClusterWork};
pub(crate) use models::state as model_state;
pub(crate) use operator::ModelReport;
pub(crate) use run::{Start, make_folders, models, parse_models, run, set_warehouse_aside};
pub(crate) use serve::{ReloadAnswer, ReportAnswer, ReportRequest};
