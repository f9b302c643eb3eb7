//! Why a cluster cannot be run.

use std::path::PathBuf;

use millrace_pg::{PgError, ServerError};

use crate::spec::NodeName;

/// Why a cluster cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("the cluster's configuration is wrong: {0}")]
    Spec(String),
    #[error("node {node}: {source}")]
    Node { node: NodeName, source: ServerError },
    #[error("node {node}: {source}")]
    Sql { node: NodeName, source: PgError },
    #[error("nodes {} both hold a primary's data", list(.0))]
    TwoPrimaries(Vec<NodeName>),
    #[error("nodes {} hold replicas' data, but none holds the primary's", list(.0))]
    NoPrimary(Vec<NodeName>),
    #[error("the cluster's record {} is damaged: {reason}", path.display())]
    StateDamaged { path: PathBuf, reason: String },
    #[error("etcd: cannot {doing}: {reason}")]
    Store { doing: &'static str, reason: String },
    #[error("etcd is not reached")]
    NotReached,
    #[error("agents run: {}", if .0.is_empty() { "one was started meanwhile".to_owned() } else { .0.join(", ") })]
    AgentsRun(Vec<String>),
    #[error("the cluster's record says that {0} is the primary, but there is no such node")]
    UnknownPrimary(String),
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl ClusterError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Node { source, .. } => source.hint(),
            Self::Sql { source, .. } => source.hint(),
            Self::TwoPrimaries(_) => Some(
                "look at both, then move the data directory of the one that is not wanted away; nothing was touched"
                    .to_owned(),
            ),
            Self::NoPrimary(_) => {
                Some("bring the primary's data directory back, or promote one of them by hand".to_owned())
            }
            Self::StateDamaged { path, .. } => Some(format!(
                "if exactly one node holds a primary's data, {} can be removed: it is then made anew",
                path.display()
            )),
            Self::UnknownPrimary(name) => Some(format!("bring node {name} back into the configuration")),
            Self::AgentsRun(_) => Some("stop them all, `millrace down` on each host, and begin again".to_owned()),
            Self::Spec(_) | Self::Io { .. } | Self::Store { .. } | Self::NotReached => None,
        }
    }

    pub(crate) fn node(node: &NodeName) -> impl FnOnce(ServerError) -> Self {
        let node = node.clone();
        move |source| Self::Node { node, source }
    }

    pub(crate) fn sql(node: &NodeName) -> impl FnOnce(PgError) -> Self {
        let node = node.clone();
        move |source| Self::Sql { node, source }
    }
}

fn list(names: &[NodeName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
