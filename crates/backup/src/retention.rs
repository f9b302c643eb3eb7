//! Which backups stay. Pure, but for [`expire`], which carries a decision out.
//!
//! A backup stays for a reason of its own, or because one that stays builds on it; the newest always does. The log
//! stays from the oldest start of those on, so that each can be replayed to any later point.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{civil::Date, tz::TimeZone};
use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};

use crate::{
    catalog, dump,
    error::BackupError,
    manifest::{self, FORMAT, Kind, Manifest},
    plan::left_behind,
    proofs,
    repo::Repository,
    wal,
};

/// What is to be kept. Each rule keeps more; what none keeps goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest full backups, with what builds on them.
    pub full_backups: usize,
    /// Everything that is younger.
    pub younger_than: Option<Duration>,
    /// Any point in time so far back can be restored.
    pub window: Option<Duration>,
    /// The last backup of so many of the latest days, ISO weeks, months and years (UTC) that have one.
    pub daily: usize,
    pub weekly: usize,
    pub monthly: usize,
    pub yearly: usize,
    /// So many of the newest logical backups of each database; `None`: all.
    pub dumps: Option<usize>,
    /// Labels that stay whatever the rules say; [`expire`] adds those that [`hold`] has marked in the repository.
    pub held: BTreeSet<String>,
}

/// What goes and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Label and why.
    pub kept: BTreeMap<String, String>,
    /// The newest first: a backup goes before the one that it builds on.
    pub expired: Vec<String>,
    /// Log that ends before this is of no more use; `None`: all stays.
    pub log_before: Option<Lsn>,
}

/// Decides. `left` are backups of branches that were left by a restore to the past: they stay as long as the promised
/// window covers them, and fill no other rule's place.
#[must_use]
pub fn decide(backups: &[Manifest], left: &BTreeSet<String>, retention: &Retention, now: Micros) -> Decision {
    let mut newest_first: Vec<&Manifest> = backups.iter().collect();
    newest_first.sort_by_key(|backup| std::cmp::Reverse((backup.stopped_at, backup.label.clone())));
    let everything = newest_first.clone();
    if newest_first.iter().any(|backup| !left.contains(&backup.label)) {
        newest_first.retain(|backup| !left.contains(&backup.label));
    }
    let mut kept: BTreeMap<String, String> = BTreeMap::new();
    let mut keep = |backup: &Manifest, why: &str| {
        kept.entry(backup.label.clone()).or_insert_with(|| why.to_owned());
    };
    if let Some(newest) = newest_first.first() {
        keep(newest, "it is the newest");
    }
    for backup in everything.iter().filter(|backup| retention.held.contains(&backup.label)) {
        keep(backup, "it is held");
    }
    let covered = retention.window.max(retention.younger_than).unwrap_or_default();
    for backup in everything.iter().filter(|of| left.contains(&of.label) && now.since(of.stopped_at) < covered) {
        keep(backup, "it is of a branch that was left within the promised window");
    }
    keep_by_count(&newest_first, retention.full_backups, &mut keep);
    if let Some(age) = retention.younger_than {
        for backup in newest_first.iter().filter(|backup| now.since(backup.stopped_at) < age) {
            keep(backup, "it is young enough");
        }
    }
    if let Some(window) = retention.window {
        // every one that is younger, and the one from which the window's beginning is reached
        for backup in &newest_first {
            keep(backup, "the promised window needs it");
            if now.since(backup.stopped_at) >= window {
                break;
            }
        }
    }
    keep_by_calendar(&newest_first, retention, &mut keep);

    // those that the kept ones build on
    let mut waiting: Vec<String> = kept.keys().cloned().collect();
    while let Some(label) = waiting.pop() {
        let parent = backups.iter().find(|backup| backup.label == label).and_then(|backup| backup.parent.clone());
        if let Some(parent) = parent.filter(|parent| !kept.contains_key(parent)) {
            kept.insert(parent.clone(), format!("{label} builds on it"));
            waiting.push(parent);
        }
    }
    let stays = |backup: &&Manifest| kept.contains_key(&backup.label);
    let expired = everything.iter().filter(|backup| !stays(backup)).map(|backup| backup.label.clone()).collect();
    let log_before = backups.iter().filter(stays).map(|backup| backup.start).min();
    Decision { kept, expired, log_before }
}

fn keep_by_count(newest_first: &[&Manifest], count: usize, keep: &mut impl FnMut(&Manifest, &str)) {
    let oldest = newest_first.iter().filter(|backup| backup.kind == Kind::Full).take(count).last();
    let Some(oldest) = oldest.filter(|_| count > 0) else { return };
    for backup in newest_first.iter().filter(|backup| backup.stopped_at >= oldest.stopped_at) {
        keep(backup, "it is one of the newest");
    }
}

fn keep_by_calendar(newest_first: &[&Manifest], retention: &Retention, keep: &mut impl FnMut(&Manifest, &str)) {
    type Period = fn(Date) -> (i16, i16);
    let rules: [(usize, &str, Period); 4] = [
        (retention.daily, "it is the last of its day", |date| (date.year(), date.day_of_year())),
        (retention.weekly, "it is the last of its week", |date| {
            (date.iso_week_date().year(), date.iso_week_date().week().into())
        }),
        (retention.monthly, "it is the last of its month", |date| (date.year(), date.month().into())),
        (retention.yearly, "it is the last of its year", |date| (date.year(), 0)),
    ];
    for (count, why, period) in rules {
        let mut seen = BTreeSet::new();
        for backup in newest_first {
            let Some(time) = backup.stopped_at.to_timestamp() else { continue };
            let period = period(time.to_zoned(TimeZone::UTC).date());
            if seen.len() < count && seen.insert(period) {
                keep(backup, why);
            }
        }
    }
}

fn mark(system_id: u64, label: &str) -> String {
    format!("{system_id}/held/{label}.json")
}

/// A mark in the repository that a backup stays, and with it what it builds on and the log from it on.
///
/// # Errors
/// If there is no such backup, or the repository cannot be read or written.
pub async fn hold(repo: &Repository, system_id: u64, label: &str) -> Result<(), BackupError> {
    let catalog = catalog::list(repo, system_id).await?;
    if !catalog.backups.iter().any(|backup| backup.label == label) {
        return Err(BackupError::NoSuchBackup(label.to_owned()));
    }
    repo.create(&mark(system_id, label), manifest::to_document(&Held { format: FORMAT, label: label.to_owned() })?)
        .await?;
    // an expiry that began before looks for marks before each removal
    let catalog = catalog::list(repo, system_id).await?;
    if catalog.backups.iter().any(|backup| backup.label == label) {
        return Ok(());
    }
    repo.delete(&mark(system_id, label)).await?;
    Err(BackupError::NoSuchBackup(label.to_owned()))
}

/// That nobody has marked another backup since it was decided what goes.
async fn unchanged(repo: &Repository, system_id: u64, marked: &BTreeSet<String>) -> Result<(), BackupError> {
    match held(repo, system_id).await?.is_subset(marked) {
        true => Ok(()),
        false => Err(BackupError::HeldMeanwhile),
    }
}

/// Takes the mark away; whether there was one.
///
/// # Errors
/// If the repository cannot be read or written.
pub async fn release(repo: &Repository, system_id: u64, label: &str) -> Result<bool, BackupError> {
    let there = held(repo, system_id).await?.contains(label);
    if there {
        repo.delete(&mark(system_id, label)).await?;
    }
    Ok(there)
}

/// Labels that are marked.
///
/// # Errors
/// If the repository cannot be read.
pub async fn held(repo: &Repository, system_id: u64) -> Result<BTreeSet<String>, BackupError> {
    let listed = repo.list(&format!("{system_id}/held")).await?;
    let label = |name: &str| Some(name.rsplit('/').next()?.strip_suffix(".json")?.to_owned());
    Ok(listed.iter().filter_map(|listed| label(&listed.name)).collect())
}

/// A mark's content.
#[derive(Debug, Serialize)]
struct Held {
    format: u32,
    label: String,
}

/// What was removed, or with `dry_run` would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    pub decision: Decision,
    pub log_objects: u64,
    pub log_bytes: u64,
    /// Logical backups.
    pub dumps: Vec<String>,
    /// Left by runs that failed a day ago or longer.
    pub garbage: Vec<String>,
}

/// A run without a manifest may still go on; after so long it does not.
const GARBAGE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Removes what `retention` does not keep. A backup whose manifest cannot be read stops everything: what it needs is
/// not known.
///
/// # Errors
/// If the repository cannot be read or written.
pub async fn expire(
    repo: &Repository,
    system_id: u64,
    retention: &Retention,
    now: Micros,
    dry_run: bool,
) -> Result<Expired, BackupError> {
    let catalog = catalog::list(repo, system_id).await?;
    if let Some((object, reason)) = catalog.damaged.first() {
        return Err(BackupError::damaged(object, reason));
    }
    // without a key it is not known which branches were left
    let inventory = match repo.keys.is_empty() {
        true => wal::listed(repo, system_id).await?,
        false => wal::inventory(repo, system_id).await?,
    };
    let mut retention = retention.clone();
    let marked = held(repo, system_id).await?;
    retention.held.extend(marked.iter().cloned());
    let decision = decide(&catalog.backups, &left_behind(&inventory, &catalog.backups), &retention, now);
    let logical = dump::dumps(repo, system_id).await?;
    let dumps = retention.dumps.map_or_else(Vec::new, |keep| dump::superfluous(&logical.dumps, keep));
    let old = |unfinished: &[(String, Micros)]| -> Vec<String> {
        let old = unfinished.iter().filter(|(_, newest)| now.since(*newest) >= GARBAGE_AFTER);
        old.map(|(label, _)| label.clone()).collect()
    };
    let (garbage, of_dumps) = (old(&catalog.unfinished), old(&logical.unfinished));
    // one that is being made starts after the newest, which is kept, and so needs nothing of this
    let log = decision.log_before.map_or_else(Vec::new, |before| inventory.before(before));
    if !dry_run {
        for label in decision.expired.iter().chain(&garbage) {
            unchanged(repo, system_id, &marked).await?;
            catalog::remove(repo, system_id, label).await?;
            tracing::info!(label, "backup removed");
        }
        for label in dumps.iter().chain(&of_dumps) {
            dump::remove(repo, system_id, label).await?;
            tracing::info!(label, "logical backup removed");
        }
        unchanged(repo, system_id, &marked).await?;
        for (object, _) in &log {
            repo.delete(object).await?;
        }
        let stays = |label: &str| decision.kept.iter().any(|(kept, _)| kept == label);
        proofs::forget(repo, system_id, stays).await?;
    }
    Ok(Expired {
        decision,
        log_objects: u64::try_from(log.len()).unwrap_or(u64::MAX),
        log_bytes: log.iter().map(|(_, bytes)| bytes).sum(),
        dumps,
        garbage: garbage.into_iter().chain(of_dumps).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::tests::backup;

    const HOUR: i64 = 3_600_000_000;
    const DAY: i64 = 24 * HOUR;

    /// `f` and `i`: full and incremental backups, one every twelve hours, the last one twelve hours ago.
    fn backups(kinds: &str) -> (Vec<Manifest>, Micros) {
        let mut all: Vec<Manifest> = Vec::new();
        for (number, kind) in (1u64..).zip(kinds.chars()) {
            let mut next = backup(&format!("{number:02}"), 1, number << 24, (number << 24) + 5);
            next.stopped_at = Micros(i64::try_from(number).unwrap() * DAY / 2);
            if kind == 'i' {
                next.kind = Kind::Incremental;
                next.parent = all.last().map(|parent| parent.label.clone());
            }
            all.push(next);
        }
        let now = Micros(i64::try_from(all.len() + 1).unwrap() * DAY / 2);
        (all, now)
    }

    fn kept(kinds: &str, retention: &Retention) -> String {
        let (all, now) = backups(kinds);
        decide(&all, &BTreeSet::new(), retention, now).kept.into_keys().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rules() {
        let none = Retention::default();
        assert_eq!(kept("ffff", &none), "04", "the newest always stays");
        assert_eq!(kept("fiifi", &none), "04 05", "and what it builds on");
        assert_eq!(kept("fiifi", &Retention { full_backups: 2, ..none.clone() }), "01 02 03 04 05");
        assert_eq!(kept("fiififi", &Retention { full_backups: 2, ..none.clone() }), "04 05 06 07");
        assert_eq!(kept("fiif", &Retention { held: ["02".to_owned()].into(), ..none.clone() }), "01 02 04");
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(kept("ffff", &Retention { younger_than: Some(day), ..none.clone() }), "04");
        assert_eq!(kept("ffffff", &Retention { window: Some(day), ..none.clone() }), "05 06", "one begins the window");
        assert_eq!(kept("ffffff", &Retention { daily: 2, ..none.clone() }), "05 06");
        assert_eq!(kept("fffffff", &Retention { daily: 2, ..none.clone() }), "05 07");
        assert_eq!(kept(&"f".repeat(62), &Retention { monthly: 2, ..none }), "61 62");
    }

    #[test]
    fn branches_that_were_left_take_no_place() {
        let (all, now) = backups("fffff");
        let left: BTreeSet<String> = ["04".to_owned(), "05".to_owned()].into();
        let kept = |retention: &Retention| {
            let decision = decide(&all, &left, retention, now);
            assert_eq!(decision.kept.len() + decision.expired.len(), all.len());
            decision.kept.into_keys().collect::<Vec<_>>().join(" ")
        };
        let one = Retention { full_backups: 1, ..Retention::default() };
        assert_eq!(kept(&one), "03", "what the live branch rests on");
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(
            kept(&Retention { window: Some(day), ..one.clone() }),
            "03 05",
            "one is young enough to be looked at"
        );
        let every: BTreeSet<String> = all.iter().map(|backup| backup.label.clone()).collect();
        assert_eq!(decide(&all, &every, &one, now).kept.into_keys().collect::<Vec<_>>(), ["05"], "never none");
    }

    proptest! {
        #[test]
        fn what_stays_can_be_restored(
            kinds in "f[fi]{0,40}", full_backups in 0usize..5, window_h in 0u64..600, daily in 0usize..9, weekly in 0usize..4,
        ) {
            let window = Duration::from_secs(window_h * 3600);
            let retention = Retention { full_backups, window: Some(window), daily, weekly, ..Retention::default() };
            let (all, now) = backups(&kinds);
            let decision = decide(&all, &BTreeSet::new(), &retention, now);
            prop_assert_eq!(decision.kept.len() + decision.expired.len(), all.len());
            for backup in all.iter().filter(|backup| decision.kept.contains_key(&backup.label)) {
                prop_assert!(backup.parent.as_ref().is_none_or(|parent| decision.kept.contains_key(parent)));
                prop_assert!(decision.log_before.unwrap() <= backup.start);
            }
            // every point of the window has a kept backup before it, if there ever was one
            let begin = Micros(now.0 - i64::try_from(window.as_micros()).unwrap());
            let before = |backup: &&Manifest| backup.stopped_at <= begin;
            if all.iter().any(|backup| before(&backup)) {
                prop_assert!(all.iter().filter(before).any(|backup| decision.kept.contains_key(&backup.label)));
            }
            prop_assert!(all.iter().filter(|b| b.kind == Kind::Full && decision.kept.contains_key(&b.label)).count() >= 1);
        }
    }
}
