//! What supervisors on several hosts share: the record, who holds the office, and what each saw of its own node.
//!
//! Invariants: the record changes only by compare-and-swap, so that of two who would change it one learns that he is
//! late; the office goes with its holder's lease, and each time that it is taken the record's term grows in the same
//! transaction. Whoever reads the present state may be late, and acts on nothing that being late could make wrong.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use millrace_base::Secret;
use serde::{Deserialize, Serialize};

use crate::{history::Entry, observed::NodeView, spec::NodeName, state::ClusterRecord};

pub(crate) mod etcd;

/// How an agent reaches etcd.
#[derive(Debug, Clone)]
pub struct EtcdSpec {
    /// `https://host:port`, tried in turn.
    pub endpoints: Vec<String>,
    /// The authority of the servers' certificates; without one, plain HTTP.
    pub ca: Option<PathBuf>,
    /// A certificate and its key, for servers that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub user: Option<(String, Secret)>,
    /// All keys of this cluster begin with it.
    pub prefix: String,
    /// A primary whose host is gone is replaced after this.
    pub ttl: Duration,
}

impl EtcdSpec {
    /// For how long a lease is good by the clock of its holder, from when it asked for it: so much shorter that everything
    /// has been killed before it ends at the store.
    pub(crate) fn valid_for(&self) -> Duration {
        self.ttl * 3 / 4
    }

    /// Between signs of life.
    pub(crate) fn beat(&self) -> Duration {
        self.ttl / 8
    }

    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix.trim_end_matches('/'))
    }
}

/// What a supervisor says of its node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) view: NodeView,
    /// Its monotonic clock when it looked.
    pub(crate) now: Duration,
    /// See [`crate::Observed::roles_ready`].
    pub(crate) roles_ready: bool,
}

impl Member {
    /// Whether this says something besides how far its log has come.
    fn is_news(&self, before: &Self) -> bool {
        let known = |member: &Self| {
            let mut view = member.view.clone();
            (view.heard_at, view.slots) = (Duration::ZERO, None);
            let silent = [&mut view.silent_since, &mut view.not_streaming_since, &mut view.absent_since];
            for time in silent.into_iter().chain([&mut view.disk.stuck_since]) {
                *time = time.map(|_| Duration::ZERO);
            }
            if let Some(server) = &mut view.server {
                server.lsn = Default::default();
            }
            view
        };
        let slots = |member: &Self| -> Vec<String> {
            member.view.slots.iter().flatten().map(|slot| slot.name.clone()).collect()
        };
        self.roles_ready != before.roles_ready || slots(self) != slots(before) || known(self) != known(before)
    }
}

/// Who may be the primary, and since which term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Officer {
    pub(crate) node: NodeName,
    pub(crate) term: u64,
}

/// A member's word, and when it came, by the clock of who hears it.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) member: Arc<Member>,
    pub(crate) at: Duration,
}

impl Heard {
    /// Its view in the time of who heard it.
    pub(crate) fn view(&self) -> NodeView {
        let (there, here) = (self.member.now, self.at);
        self.member.view.clone().shifted(|time| (time + here).saturating_sub(there))
    }
}

/// The present state as it was heard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    /// Changes are heard. If not, what follows may be long past.
    pub(crate) connected: bool,
    /// There is a record, and it is not understood.
    pub(crate) unreadable: bool,
    /// With the revision that it was written at.
    pub(crate) record: Option<(ClusterRecord, i64)>,
    /// With its holder's lease.
    pub(crate) officer: Option<(Officer, i64)>,
    pub(crate) members: BTreeMap<NodeName, Heard>,
    /// By key, oldest first.
    pub(crate) history: BTreeMap<String, Entry>,
}

/// Until when this supervisor's server may accept writes, if it is the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    /// Monotonic; by then everything that writes has ended.
    pub(crate) until: Duration,
    /// How often it was extended too late.
    pub(crate) lapses: u32,
}

impl Validity {
    /// A term of this supervisor's node begins: what was before it does not count.
    pub(crate) fn begin(&mut self, until: Duration) {
        self.until = self.until.max(until);
    }

    /// `now` is not before the moment that `until` counts from.
    pub(crate) fn extend(&mut self, until: Duration, now: Duration) {
        if now >= self.until {
            self.lapses += 1;
        }
        self.until = self.until.max(until);
    }
}

/// What a change of the record needs besides that nobody else has changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// No one holds the office; this supervisor's node does from then on.
    Take(NodeName),
    /// This supervisor's node holds it.
    Hold,
    /// This supervisor's node holds it, and does no more.
    Leave,
    /// Nothing: an operator's word.
    Word,
    /// No one holds the office, and no agent is there.
    Quiet,
}
