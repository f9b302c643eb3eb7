//! What the models of servers and supervisors share: chance that can be repeated, logs, and a replica's slot.

use std::{cell::Cell, rc::Rc, time::Duration};

use millrace_base::Lsn;
use millrace_pg::catalog::Slot;

use crate::{
    NodeName,
    observed::{Durability, Part, Policy},
};

pub(crate) mod seeds;

pub(crate) const HOLD: Duration = Duration::from_millis(1500);
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];

/// A node's among [`NAMES`].
pub(crate) type Place = usize;

pub(crate) fn place_of(name: &NodeName) -> Place {
    NAMES.iter().position(|known| *known == name.as_str()).unwrap()
}

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled"); clones draw from
/// the same row.
#[derive(Debug, Clone)]
pub(crate) struct Random(Rc<Cell<u64>>);

impl Random {
    pub(crate) fn of(seed: u64) -> Self {
        Self(Rc::new(Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)))
    }

    pub(crate) fn below(&self, n: u32) -> u32 {
        let mut state = self.0.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.0.set(state);
        u32::try_from(state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40).unwrap() % n
    }

    pub(crate) fn one_in(&self, n: u32) -> bool {
        self.below(n) == 0
    }
}

/// A server's log: the numbers of its records. A number is given once, so that two logs are the same up to any record
/// that both have.
#[derive(Debug, Default)]
pub(crate) struct Log(Vec<u32>);

impl Log {
    /// As every server of the cluster has it in the beginning.
    pub(crate) fn new() -> Self {
        Self(vec![0])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.0.len() as u64)
    }

    /// Says where the record is.
    pub(crate) fn push(&mut self, record: u32) -> usize {
        self.0.push(record);
        self.0.len() - 1
    }

    pub(crate) fn has(&self, at: usize, record: u32) -> bool {
        self.0.get(at) == Some(&record)
    }

    pub(crate) fn at(&self, at: usize) -> u32 {
        self.0[at]
    }

    pub(crate) fn starts_with(&self, other: &Self) -> bool {
        other.0.last().is_none_or(|last| self.has(other.0.len() - 1, *last))
    }

    /// Takes what `source`, which starts with this log, has up to `end`.
    pub(crate) fn receive(&mut self, source: &Self, end: usize) {
        self.0.extend_from_slice(&source.0[self.0.len()..end]);
    }

    pub(crate) fn copy(&mut self, source: &Self) {
        self.0.clone_from(&source.0);
    }
}

/// The commits that clients were told of: each with its place in the log.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    commits: Vec<(usize, u32)>,
    /// So many of them were in a log that had this record at this place.
    checked: (usize, usize, u32),
}

impl Acknowledged {
    pub(crate) fn len(&self) -> usize {
        self.commits.len()
    }

    pub(crate) fn add(&mut self, at: usize, commit: u32) {
        self.commits.push((at, commit));
    }

    /// Those that `log` does not have.
    pub(crate) fn lost_by(&mut self, log: &Log) -> Vec<u32> {
        let (checked, at, record) = self.checked;
        let known = if log.has(at, record) { checked } else { 0 };
        let lost: Vec<u32> = self.commits[known..]
            .iter()
            .filter(|(at, commit)| !log.has(*at, *commit))
            .map(|(_, commit)| *commit)
            .collect();
        if let (true, Some(last)) = (lost.is_empty(), log.len().checked_sub(1)) {
            self.checked = (self.commits.len(), last, log.at(last));
        }
        lost
    }
}

/// In most histories all nodes are alike; in some the last one never leads, in others it is preferred.
pub(crate) fn part_of(name: &str, seed: u64) -> Part {
    let priority = match (name, seed % 5) {
        ("c", 0) => 0,
        ("c", 1) => 2,
        _ => 1,
    };
    Part { priority, delayed: false }
}

/// How the clusters of models are run, in the platform's own times.
pub(crate) fn policy() -> Policy {
    Policy {
        failover: true,
        durability: Durability::Quorum { quorum: 1, strict: false },
        not_streaming_max: Duration::from_secs(15),
        silent_max: Duration::from_secs(3),
        start_max: Duration::from_secs(60),
        absent_max: Duration::from_secs(5),
        hold: HOLD,
    }
}

/// The slot of a replica that streams, which keeps the log from `restart` on.
pub(crate) fn slot_of(replica: &NodeName, restart: Lsn) -> Slot {
    Slot {
        name: replica.slot(),
        slot_type: "physical".into(),
        database: None,
        temporary: false,
        active: true,
        active_pid: None,
        restart_lsn: Some(restart),
        confirmed_flush_lsn: None,
        retained_bytes: None,
        safe_wal_bytes: None,
        wal_status: Some("reserved".into()),
    }
}
