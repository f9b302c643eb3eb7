//! A primary and its replicas on one host: made, watched, kept running, stopped in order.
//!
//! One loop: [`observe`] looks at processes, folders and servers; [`decide()`] is a pure function
//! from what was seen and what is wanted to a [`Plan`]; [`act`] carries it out. Each cycle ends
//! in a sentence for each node that a person can read.
//!
//! Invariants: a data directory that is or was a primary's is never deleted, only moved aside;
//! a new cluster is made only where none was known; at most one action at a time works on a
//! node's process or data; two servers never both accept writes: one that should not is stopped.
//! The primary is a fact of the [`Intent`], kept in [`state`]. When it is lost, [`election`] names the replica that
//! surely has every acknowledged commit; what that rests on is kept true by [`promise`].

pub mod act;
mod asked;
pub mod cut;
pub mod decide;
mod disk;
pub mod election;
pub mod error;
pub mod history;
pub mod logical;
#[cfg(test)]
mod model;
mod node;
pub mod observe;
pub mod observed;
pub mod operate;
mod peers;
pub mod plan;
pub mod promise;
pub mod replay;
pub mod seed;
pub mod settings;
pub mod spec;
pub mod state;
pub mod status;
mod store;
pub mod supervisor;
pub mod takeover;
pub mod topology;

pub use decide::decide;
pub use error::ClusterError;
pub use observed::{
    DataState, DiskView, Durability, Failure, Goal, Intent, NodeView, Observed, Policy, ProcessState, Wish,
};
pub use plan::{Action, Change, Discard, NodePlan, Plan};
pub use promise::Promise;
pub use spec::{AgentSpec, ClusterSpec, Limits, NodeName, NodeSpec, RestoreId};
pub use status::ClusterStatus;
pub use store::EtcdSpec;
pub use supervisor::Supervisor;
