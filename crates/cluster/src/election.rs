//! Who may become the primary. Pure.
//!
//! Invariant: without a person's word, only a replica is elected that surely holds every acknowledged commit, or, where
//! commits are acknowledged by the primary alone, one that has all but a configured number of bytes.

use std::{collections::BTreeSet, time::Duration};

use millrace_base::Lsn;
use millrace_pg::catalog::ServerState;

use crate::{
    observed::{DataState, DiskView, Durability, Intent, NodeView, Observed, Office, Wish},
    promise::Promise,
    spec::NodeName,
};

/// Its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Election {
    Elected {
        node: NodeName,
        /// Bytes of log that the old primary was seen to have and the elected one has not; they may be lost.
        missing: Option<u64>,
    },
    /// Why no one can be elected.
    No(String),
}

/// A replica that answers, to which nothing can be added any more, and how far the log has surely come there.
struct Candidate<'a> {
    name: &'a NodeName,
    timeline: u32,
    received: Lsn,
    /// It has the primary's slots for decoding.
    has_slots: bool,
    /// 0: it counts as a witness alone.
    priority: u32,
    disk: DiskView,
}

impl Candidate<'_> {
    /// It can write.
    fn is_fit(&self) -> bool {
        self.disk == DiskView::default()
    }
}

/// Tries to start a lost primary again before a node without its slots is taken.
const TRIES_FOR_SLOTS: u32 = 3;

fn candidate<'a>(
    name: &'a NodeName,
    view: &'a NodeView,
    observed: &Observed,
    intent: &Intent,
    now: Duration,
) -> Option<Candidate<'a>> {
    let fits = |server: &&ServerState| server.in_recovery && intent.system_id == Some(server.system_id);
    let past = matches!(view.data, DataState::Past { .. });
    let server =
        view.server.as_ref().filter(fits).filter(|_| *name != intent.primary && view.busy.is_none() && !past)?;
    // one that was started again still reads its own log: it has more than it has replayed, nobody knows how much
    let received = match &intent.wish {
        Some(Wish::Failover { .. }) => server.received_lsn.unwrap_or(server.lsn),
        Some(Wish::Switchover { .. }) | None => server.received_lsn?,
    }
    .max(server.lsn);
    // where nobody can be sure that the old primary has been killed, those who would acknowledge its commits must have
    // turned away from it
    let forced = matches!(intent.wish, Some(Wish::Failover { .. }));
    let is_heir = matches!(&intent.wish, Some(Wish::Switchover { to }) if to == name);
    let has_all = is_heir && observed.handed_over.is_some_and(|end| end.is_within(received, server.timeline));
    if let Office::Vacant { resigned, .. } = observed.office
        && !forced
        && !has_all
    {
        // the last that it received may have proved to the old primary that it still is one, for a while
        let may_count_on_it = !resigned && now.saturating_sub(view.heard_at) < intent.policy.hold;
        if !view.is_settled(intent.term) || may_count_on_it {
            return None;
        }
    }
    let has = |wanted: &String| view.slots.iter().flatten().any(|slot| slot.name == *wanted && slot.is_kept_logical());
    let has_slots = observed.logical_slots.iter().all(has);
    let priority = view.part.priority;
    Some(Candidate { name, timeline: server.timeline, received, has_slots, priority, disk: view.disk })
}

/// Whether an elected primary may have acknowledged commits already, of which nobody knows where they are: as long as it
/// is a replica by its files, it has not, and what was promised by its predecessor holds.
fn may_have_begun(observed: &Observed, intent: &Intent) -> bool {
    let is_replica = |view: &NodeView| matches!(view.data, DataState::Whole { standby: true, .. });
    intent.promoting && !observed.nodes.get(&intent.primary).is_some_and(is_replica)
}

/// Elects the successor of [`Intent::primary`], whose server no longer runs. `now` is monotonic.
#[must_use]
pub fn elect(observed: &Observed, intent: &Intent, now: Duration) -> Election {
    let candidates: Vec<_> =
        observed.nodes.iter().filter_map(|(name, view)| candidate(name, view, observed, intent, now)).collect();
    let wished = match &intent.wish {
        Some(Wish::Failover { to } | Wish::Switchover { to }) => Some(to),
        None => None,
    };
    let of_last =
        |received: Lsn| observed.primary_lsn.map(|last| last.bytes_since(received)).filter(|bytes| *bytes > 0);
    if let Some(Wish::Failover { to }) = &intent.wish {
        return match candidates.iter().find(|candidate| candidate.name == to) {
            Some(chosen) => Election::Elected { node: to.clone(), missing: of_last(chosen.received) },
            None => Election::No(format!("{to} does not answer")),
        };
    }
    // the old primary's log is complete: who has its end has everything. Where what is heard of others may be late, only
    // the one that was chosen when it streamed
    if let (Some(Wish::Switchover { to }), Some(end)) = (&intent.wish, observed.handed_over) {
        let together = observed.office == Office::Undivided;
        let fits = |c: &&Candidate<'_>| c.priority > 0 && (together || c.name == to);
        let whole = candidates.iter().filter(|c| end.is_within(c.received, c.timeline)).filter(fits);
        return match whole.max_by_key(|candidate| candidate.name == to) {
            Some(heir) => Election::Elected { node: heir.name.clone(), missing: None },
            None => Election::No("no replica has received its last log".to_owned()),
        };
    }
    let none = Promise::none();
    let promise = if may_have_begun(observed, intent) { &none } else { &intent.promise };
    // members have followed the primary's timeline; how far another has got says nothing if it has log of its own.
    // Of those that are equally far the one that is wished for, then the first by name.
    let promised = !promise.is_none();
    let witnesses = || candidates.iter().rev().filter(|c| !promised || promise.members.contains(c.name));
    let rank = |c: &Candidate<'_>| {
        let timeline = if promised { 0 } else { c.timeline };
        (timeline, c.received, c.is_fit(), c.has_slots, wished == Some(c.name), c.priority)
    };
    let Some(best) = witnesses().filter(|c| c.priority > 0).max_by_key(|candidate| rank(candidate)) else {
        return Election::No("no replica answers that may be the primary".to_owned());
    };
    // commits waited for it before it was told never to lead
    if let Some(ahead) = witnesses().find(|c| promised && c.received > best.received) {
        return Election::No(format!(
            "{} has commits that {} lacks, and may not be the primary",
            ahead.name, best.name
        ));
    }
    let seen: BTreeSet<NodeName> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    let missing = of_last(best.received);
    let node = best.name.clone();
    let tries = observed.nodes.get(&intent.primary).and_then(|view| view.failure.as_ref()).map_or(1, |f| f.next_try);
    // whoever has less of the log is not taken instead
    if best.disk.stuck_since.is_some() {
        return Election::No(format!("the disk of {node}, which has the most, takes nothing either"));
    }
    let of_primary = observed.nodes.get(&intent.primary).map(|view| view.disk).unwrap_or_default();
    if best.disk.full && of_primary.full {
        return Election::No(format!("the disk of {node}, which has the most, is full too"));
    }
    if !best.has_slots && tries <= TRIES_FOR_SLOTS {
        return Election::No(format!("{node} does not have the slots yet without which capture cannot go on"));
    }
    if promised {
        return match promise.still_to_see(&seen) {
            0 => Election::Elected { node, missing },
            more => Election::No(format!(
                "{more} more of {} must answer to be sure that no commit is lost",
                list(&promise.members)
            )),
        };
    }
    match intent.policy.durability {
        Durability::Asynchronous { .. } if observed.primary_lsn.is_none() => {
            Election::No(format!("how much of the log {node} lacks is not known"))
        }
        Durability::Asynchronous { loss_max } if missing.unwrap_or(0) <= loss_max => {
            Election::Elected { node, missing }
        }
        Durability::Asynchronous { loss_max } => Election::No(format!(
            "{node}, the most advanced replica, lacks {} bytes, more than the {loss_max} that may be lost",
            missing.unwrap_or(0)
        )),
        Durability::Quorum { .. } => Election::No("no replica is sure to have every commit".to_owned()),
    }
}

fn list(members: &BTreeSet<NodeName>) -> String {
    members.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}
