//! A primary and its replicas on one host: made, watched, kept running, stopped in order.
//!
//! One loop: [`observe`] looks at processes, folders and servers; [`decide()`] is a pure function
//! from what was seen and what is wanted to a [`Plan`]; [`act`] carries it out. Each cycle ends
//! in a sentence for each node that a person can read.
//!
//! Invariants: a data directory that is or was a primary's is never deleted, only moved aside;
//! a new cluster is made only where none was known; at most one action at a time works on a
//! node's process or data; two servers never both accept writes: one that should not is stopped.
//! Non-goals here: electing another primary. The primary is a fact of the [`Intent`], kept in
//! [`state`]; whoever changes it changes what the same rules lead to.

pub mod act;
pub mod decide;
pub mod error;
mod node;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod replay;
pub mod settings;
pub mod spec;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod topology;

pub use decide::decide;
pub use error::ClusterError;
pub use observed::{DataState, Failure, Goal, Intent, NodeView, Observed, ProcessState};
pub use plan::{Action, Discard, NodePlan, Plan};
pub use spec::{ClusterSpec, Limits, NodeName, NodeSpec};
pub use status::ClusterStatus;
pub use supervisor::Supervisor;
