//! What a restore needs: which backups, which log, and whether the target can be reached at all. Pure.

use std::{cmp::Reverse, collections::BTreeSet, fmt};

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};

use crate::{
    manifest::Manifest,
    wal::{History, Inventory, Segment},
};

/// Up to where log is replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// All that is in the repository.
    Latest,
    /// As soon as the data is consistent.
    Consistent,
    Time {
        at: Micros,
        inclusive: bool,
    },
    Lsn {
        at: Lsn,
        inclusive: bool,
    },
    /// A transaction's number.
    Xid {
        xid: u64,
        inclusive: bool,
    },
    /// Made by `pg_create_restore_point`.
    Name(String),
}

/// Between which points a backup can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub label: String,
    pub timeline: u32,
    pub from: Lsn,
    pub from_time: Micros,
    pub to: Lsn,
    /// When the last of that log reached the repository.
    pub to_time: Micros,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, timeline, from, from_time, to, to_time } = self;
        write!(f, "{from} ({from_time}) to {to} ({to_time}) on timeline {timeline}, from backup {label}")
    }
}

/// What is done for a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Labels, the full one first.
    pub backups: Vec<String>,
    pub target: Target,
    /// The timeline that is followed.
    pub timeline: u32,
    /// Replay begins here.
    pub start: Lsn,
    /// The files of the log that are brought, in order.
    pub segments: Vec<Segment>,
    pub window: Window,
    /// Bytes of data that are written.
    pub data_bytes: u64,
}

/// Why there is no plan.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("there is no backup to restore")]
    NoBackup,
    #[error("there is no backup {0}")]
    NoSuchBackup(String),
    #[error("backup {label} builds on {parent}, which is not there")]
    ChainBroken { label: String, parent: String },
    #[error(
        "the log of backup {label} is not whole: {segment} is missing, so it cannot be made consistent (it needs {from} to {to})"
    )]
    LogMissing { label: String, segment: String, from: Lsn, to: Lsn },
    #[error("{target} lies outside of what can be restored: {}", list(windows))]
    OutsideWindow { target: String, windows: Vec<Window> },
    #[error("timeline {0} is not in the repository, or comes from none of its backups")]
    NoSuchTimeline(u32),
}

fn list(windows: &[Window]) -> String {
    if windows.is_empty() {
        return "nothing".to_owned();
    }
    windows.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the latest point"),
            Self::Consistent => f.write_str("the first consistent point"),
            Self::Time { at, .. } => write!(f, "the time {at}"),
            Self::Lsn { at, .. } => write!(f, "the position {at}"),
            Self::Xid { xid, .. } => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "the point \"{name}\""),
        }
    }
}

/// How far the log goes without a gap.
struct Reach {
    segments: Vec<Segment>,
    to: Lsn,
    to_time: Micros,
    /// The first segment that is not there.
    missing: Segment,
}

/// Follows the log from `from` along a path of timelines (newest first, each with its beginning). A segment in which a
/// timeline begins is taken from whichever has more of it, and of equals from the newest, as a server does: of a timeline
/// that has just begun there may be the first few pages of a segment that the one before has up to the branch.
fn follow(inventory: &Inventory, path: &[(u32, Lsn)], from: Lsn) -> Reach {
    let bytes = inventory.segment_bytes;
    let newest = path.first().map_or(1, |(timeline, _)| *timeline);
    let mut at = Segment::of(newest, from, bytes);
    let (mut segments, mut to, mut to_time) = (Vec::new(), from, Micros(0));
    loop {
        // what a timeline has beyond the branch of the next one is not of this path
        let ends = std::iter::once(Lsn(u64::MAX)).chain(path.iter().map(|(_, begin)| *begin));
        let candidates = path
            .iter()
            .zip(ends)
            .filter(|((_, begin), end)| begin.0 / bytes <= at.number && at.start(bytes) < *end)
            .map(|((timeline, _), end)| (Segment { timeline: *timeline, ..at }, end))
            .filter_map(|(segment, end)| Some((segment, inventory.reach(segment)?.min(end))));
        // the first of equals
        let Some((found, reach)) = candidates.min_by_key(|(_, reach)| Reverse(*reach)) else { break };
        to = to.max(reach);
        to_time = to_time.max(inventory.written(found));
        segments.push(found);
        if reach < found.end(bytes) {
            break;
        }
        at = at.next();
    }
    Reach { segments, to, to_time, missing: at }
}

/// The first file of the log that is missing between two positions of one timeline; `None` if it is all there.
pub(crate) fn missing(inventory: &Inventory, timeline: u32, from: Lsn, to: Lsn) -> Option<Segment> {
    let path = inventory.history(timeline).path(timeline);
    let reach = follow(inventory, &path, from);
    if reach.to >= to {
        return None;
    }
    // a promoted server writes the rest of its last segment on its new timeline: the same bytes up to the branch
    let later = inventory.timelines().into_iter().filter(|later| *later > timeline).any(|later| {
        let history = inventory.history(later);
        history.left(timeline).is_some_and(|left| left >= to) && follow(inventory, &history.path(later), from).to >= to
    });
    (!later).then_some(reach.missing)
}

/// The timelines on which a backup can be replayed, newest last.
fn timelines_from(inventory: &Inventory, backup: &Manifest) -> Vec<u32> {
    let later = inventory.timelines().into_iter().filter(|timeline| {
        *timeline > backup.timeline
            && inventory.history(*timeline).left(backup.timeline).is_some_and(|left| left >= backup.stop)
    });
    std::iter::once(backup.timeline).chain(later).collect()
}

/// Backups of branches that the newest timeline has not come from: after a restore to the past, those that were made
/// beyond it.
#[must_use]
pub fn left_behind(inventory: &Inventory, backups: &[Manifest]) -> BTreeSet<String> {
    let Some(newest) = inventory.timelines().pop() else { return BTreeSet::new() };
    let history = inventory.history(newest);
    // without its history nothing is known of where it came from
    let known = history.path(newest).len() > 1;
    let left = |backup: &&Manifest| {
        known && backup.timeline < newest && history.left(backup.timeline).is_none_or(|left| left < backup.stop)
    };
    backups.iter().filter(left).map(|backup| backup.label.clone()).collect()
}

/// Along which timeline a target is looked for. A time belongs to the timeline that the system was on then: after a
/// restore to the past, moments between the branch and the restore lie on what was left.
fn natural(inventory: &Inventory, newest: u32, target: &Target) -> u32 {
    let Target::Time { at, .. } = target else { return newest };
    let mut timeline = newest;
    loop {
        let path = inventory.history(timeline).path(timeline);
        let [(_, branch), (parent, _), ..] = path.as_slice() else { return timeline };
        let goes_on = |segment: Segment| inventory.reach(segment).is_some_and(|reach| reach > *branch);
        let segments = inventory.segments.keys().chain(inventory.parts.keys());
        let left_something = segments.copied().any(|segment| segment.timeline == *parent && goes_on(segment));
        if *at >= inventory.begun(timeline) || !left_something {
            return timeline;
        }
        timeline = *parent;
    }
}

fn window(inventory: &Inventory, backup: &Manifest, timeline: u32) -> Result<(Window, Reach), PlanError> {
    let history: History = inventory.history(timeline);
    let reach = follow(inventory, &history.path(timeline), backup.start);
    if reach.to < backup.stop {
        return Err(PlanError::LogMissing {
            label: backup.label.clone(),
            segment: reach.missing.file_name(inventory.segment_bytes),
            from: backup.start,
            to: backup.stop,
        });
    }
    let window = Window {
        label: backup.label.clone(),
        timeline,
        from: backup.stop,
        from_time: backup.stopped_at,
        to: reach.to,
        to_time: reach.to_time.max(backup.stopped_at),
    };
    Ok((window, reach))
}

/// Every backup's window on its newest timeline; those that cannot be used at all, with why not.
#[must_use]
pub fn windows(backups: &[Manifest], inventory: &Inventory) -> (Vec<Window>, Vec<PlanError>) {
    let (mut windows, mut errors) = (Vec::new(), Vec::new());
    for backup in backups {
        let timeline = timelines_from(inventory, backup).pop().unwrap_or(backup.timeline);
        match chain_of(backups, backup).and_then(|_| window(inventory, backup, timeline)) {
            Ok((window, _)) => windows.push(window),
            Err(error) => errors.push(error),
        }
    }
    (windows, errors)
}

fn chain_of(backups: &[Manifest], backup: &Manifest) -> Result<Vec<String>, PlanError> {
    crate::catalog::chain(backups, &backup.label)
        .map(|chain| chain.into_iter().map(|backup| backup.label.clone()).collect())
        .map_err(|_| PlanError::ChainBroken {
            label: backup.label.clone(),
            parent: backup.parent.clone().unwrap_or_default(),
        })
}

fn is_within(target: &Target, window: &Window) -> bool {
    match target {
        Target::Latest | Target::Consistent | Target::Xid { .. } | Target::Name(_) => true,
        Target::Time { at, .. } => *at >= window.from_time && *at <= window.to_time,
        Target::Lsn { at, .. } => *at >= window.from && *at <= window.to,
    }
}

/// Which of the backups is used. With neither time nor position to go by (a transaction, a named point), it is the
/// newest: for an older point name the backup.
///
/// # Errors
/// [`PlanError`] says what is missing, and what could be reached instead.
pub fn plan(
    backups: &[Manifest],
    inventory: &Inventory,
    target: &Target,
    label: Option<&str>,
    timeline: Option<u32>,
) -> Result<Plan, PlanError> {
    let mut candidates: Vec<&Manifest> = match label {
        Some(label) => {
            vec![
                backups
                    .iter()
                    .find(|backup| backup.label == label)
                    .ok_or_else(|| PlanError::NoSuchBackup(label.to_owned()))?,
            ]
        }
        None => backups.iter().collect(),
    };
    if candidates.is_empty() {
        return Err(PlanError::NoBackup);
    }
    candidates.sort_by_key(|backup| (backup.stop, backup.stopped_at));
    candidates.reverse();
    let newest = inventory.timelines().into_iter().chain(candidates.iter().map(|b| b.timeline)).max().unwrap_or(1);
    let wanted = timeline.unwrap_or_else(|| natural(inventory, newest, target));
    let (mut windows, mut first_error) = (Vec::new(), None);
    for backup in candidates {
        let mut reachable = timelines_from(inventory, backup);
        // a backup of a side branch is of use only where that branch is asked for
        if timeline.is_some() || label.is_none() || reachable.contains(&wanted) {
            reachable.retain(|t| *t == wanted);
        }
        let Some(on) = reachable.pop() else { continue };
        let found = chain_of(backups, backup).and_then(|chain| Ok((chain, window(inventory, backup, on)?)));
        let (chain, (window, reach)) = match found {
            Ok(found) => found,
            Err(error) => {
                first_error.get_or_insert(error);
                continue;
            }
        };
        if !is_within(target, &window) {
            windows.push(window);
            continue;
        }
        let needed = match target {
            Target::Lsn { at, .. } => Some(*at),
            Target::Consistent => Some(backup.stop),
            Target::Latest | Target::Time { .. } | Target::Xid { .. } | Target::Name(_) => None,
        };
        let mut segments = reach.segments;
        if let Some(needed) = needed {
            // the record at the target may reach into the next segment
            let last = needed.0 / inventory.segment_bytes + 1;
            segments.retain(|segment| segment.number <= last);
        }
        return Ok(Plan {
            backups: chain,
            target: target.clone(),
            timeline: on,
            start: backup.start,
            segments,
            window,
            data_bytes: backup.data_bytes,
        });
    }
    if !windows.is_empty() {
        return Err(PlanError::OutsideWindow { target: target.to_string(), windows });
    }
    Err(first_error.unwrap_or(PlanError::NoSuchTimeline(wanted)))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
