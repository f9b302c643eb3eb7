//! What is to be done, and the words for it.

use std::collections::BTreeMap;

use millrace_contract::status::Severity;
use millrace_pg::StopMode;

use crate::{promise::Promise, spec::NodeName};

/// What becomes of the data directory that a new base backup replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// There is none.
    Nothing,
    /// A replica's, and never more: deleted.
    Delete,
    /// It is or was a primary's, or no one can tell: renamed and kept.
    MoveAside,
}

/// One thing to do with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Watch the server that an earlier supervisor left.
    Adopt,
    /// Make a new cluster here.
    Initdb,
    /// Start the server; `from` is its upstream, if it is a replica.
    Start {
        from: Option<NodeName>,
    },
    Stop(StopMode),
    /// Stop the server if it runs, discard its data, make its slot anew, copy `from`.
    MakeReplica {
        from: NodeName,
        discard: Discard,
    },
    /// Kill the server and whatever it left that could write.
    Fence,
    /// Undo what only this node has, and make it a replica of `from`.
    Rewind {
        from: NodeName,
    },
    /// Restart the replica with the logical slots of `from`.
    CopySlots {
        from: NodeName,
    },
    /// Stop the primary in order once no client's transaction is open, so that nothing is lost and no client fails.
    HandOver,
    /// Make the elected replica the primary.
    Promote,
    /// Take no log any more from the primary of this term, whatever becomes of it.
    Vote {
        term: u64,
    },
    /// Take no log from the primary for now, without a vote.
    LetGo,
    /// Take the primary's log from `from` instead.
    Follow {
        from: NodeName,
    },
    /// On the primary: whom commits wait for.
    SetPromise(Promise),
    /// On the primary: the roles of the cluster itself.
    EnsureRoles,
    /// On the primary: the slot that `replica` uses.
    CreateSlot {
        replica: NodeName,
    },
}

impl Action {
    /// It changes this node's process or data directory, as opposed to asking its server something.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        match self {
            Self::Adopt
            | Self::Initdb
            | Self::Start { .. }
            | Self::Stop(_)
            | Self::MakeReplica { .. }
            | Self::Fence
            | Self::Rewind { .. }
            | Self::CopySlots { .. }
            | Self::HandOver => true,
            Self::Promote
            | Self::Vote { .. }
            | Self::LetGo
            | Self::Follow { .. }
            | Self::SetPromise(_)
            | Self::EnsureRoles
            | Self::CreateSlot { .. } => false,
        }
    }
}

/// Something about a node that someone should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub severity: Severity,
    pub what_to_do: String,
}

/// What is done with one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// In this order; at most one is exclusive.
    pub actions: Vec<Action>,
    /// For people: how the node is and what is done about it.
    pub sentence: String,
    pub trouble: Option<Trouble>,
}

impl NodePlan {
    pub(crate) fn wait(sentence: impl Into<String>) -> Self {
        Self { actions: Vec::new(), sentence: sentence.into(), trouble: None }
    }

    pub(crate) fn act(action: Action, sentence: impl Into<String>) -> Self {
        Self { actions: vec![action], sentence: sentence.into(), trouble: None }
    }

    pub(crate) fn trouble(mut self, severity: Severity, what_to_do: impl Into<String>) -> Self {
        self.trouble = Some(Trouble { severity, what_to_do: what_to_do.into() });
        self
    }
}

/// What is recorded before anything that rests on it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Another primary. `missing`: bytes of log that the old one was seen to have and this one has not.
    Elect {
        node: NodeName,
        missing: Option<u64>,
        why: String,
    },
    /// The elected one is a primary.
    Promoted,
    Promise(Promise),
    /// What an operator wanted cannot be.
    GiveUp(String),
    /// The primary begins a term: see [`crate::observed::Office`].
    TakeOffice,
    /// The primary's server has ended, and another node can take its place.
    Resign(String),
}

/// What is done with every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub nodes: BTreeMap<NodeName, NodePlan>,
    pub change: Option<Change>,
}
