//! How long there has been no primary that accepts writes, for the history.

use std::time::Duration;

use super::Supervisor;
use crate::{history::Event, observed::Observed, spec::NodeName};

/// From a loss to a promotion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vacancy {
    elected_at: Duration,
    /// When the primary before was last seen to accept writes; unknown to a supervisor that has just started.
    writable_until: Option<Duration>,
}

impl Supervisor {
    /// The primary answers: it accepts writes, or did until its disk took nothing any more.
    pub(super) fn note_writable(&mut self, observed: &Observed, now: Duration) {
        let stuck = observed.nodes.get(&self.intent.primary).and_then(|view| view.disk.stuck_since);
        self.writable_at = match (stuck, self.writable_at) {
            (Some(stuck), Some(before)) => Some(before.min(stuck)),
            _ => Some(self.primary_seen_at(now)),
        };
    }

    /// When what is known of the primary at `now` was so: what another supervisor said of it may be old.
    fn primary_seen_at(&self, now: Duration) -> Duration {
        self.others.as_ref().and_then(|others| others.peers.heard_at(&self.intent.primary)).unwrap_or(now)
    }

    /// Another primary was elected at `now`. An election after one that came to nothing prolongs the vacancy.
    pub(super) fn vacated(&mut self, now: Duration) -> Vacancy {
        let before = self.vacancy.take().and_then(|vacancy| vacancy.writable_until);
        Vacancy { elected_at: now, writable_until: self.writable_at.take().or(before) }
    }
}

pub(super) fn elected(from: &NodeName, to: &NodeName, why: String, missing_bytes: Option<u64>) -> Event {
    Event::Elected { from: from.to_string(), to: to.to_string(), why, missing_bytes }
}

pub(super) fn promoted(node: &NodeName, vacancy: Option<&Vacancy>, now: Duration) -> Event {
    let since = |at: Duration| u64::try_from(now.saturating_sub(at).as_millis()).ok();
    Event::Promoted {
        node: node.to_string(),
        after_ms: vacancy.and_then(|vacancy| since(vacancy.elected_at)),
        away_ms: vacancy.and_then(|vacancy| since(vacancy.writable_until?)),
    }
}
