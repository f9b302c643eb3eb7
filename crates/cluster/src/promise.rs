//! What is promised of acknowledged commits, and how the promise is changed without ever being broken. Pure.
//!
//! The record's promise says what surely holds of every commit that a client was told of; the primary's
//! `synchronous_standby_names` says what new commits wait for. Invariant: at any moment the record's promise follows
//! from the setting in force, so whoever is elected by the record holds every acknowledged commit. A promise that
//! becomes weaker is recorded before the primary is told; one that becomes stronger is recorded after the primary was
//! told, and once what was acknowledged before has arrived as well.

use std::{borrow::Cow, collections::BTreeSet};

use serde::{Deserialize, Serialize};

use crate::spec::NodeName;

/// Every acknowledged commit is on the primary's disk and on those of at least `quorum` of `members`.
/// Without members it is on the primary's alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    pub members: BTreeSet<NodeName>,
    pub quorum: usize,
}

/// What is to be done next on the way to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromiseStep {
    /// Nothing: it is so.
    Kept,
    /// The setting is in force; members have yet to receive what was acknowledged before.
    CatchingUp,
    /// Record this.
    Record(Promise),
    /// Tell the primary this.
    Set(Promise),
}

impl Promise {
    /// On the primary's disk alone.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// On `quorum` of `members`, or on all of them if there are fewer.
    #[must_use]
    pub fn new(members: BTreeSet<NodeName>, quorum: usize) -> Self {
        let quorum = quorum.min(members.len());
        if quorum == 0 { Self::none() } else { Self { members, quorum } }
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        self.quorum == 0
    }

    /// The value of `synchronous_standby_names` (manual, "Synchronous Replication").
    #[must_use]
    pub fn setting(&self) -> String {
        if self.is_none() {
            return String::new();
        }
        let mut setting = format!("ANY {} (", self.quorum);
        for (i, name) in self.members.iter().enumerate() {
            setting.push_str(if i == 0 { "\"" } else { ", \"" });
            setting.push_str(name.as_str());
            setting.push('"');
        }
        setting.push(')');
        setting
    }

    /// What a setting makes commits wait for; whatever the platform would not have written counts as nothing.
    #[must_use]
    pub fn parse(setting: &str) -> Self {
        let parsed = || {
            let (quorum, names) = setting.strip_prefix("ANY ")?.strip_suffix(')')?.split_once(" (")?;
            let name = |quoted: &str| Some(NodeName::new(quoted.strip_prefix('"')?.strip_suffix('"')?));
            let promise = Self::new(names.split(", ").map(name).collect::<Option<_>>()?, quorum.parse().ok()?);
            (promise.setting() == setting).then_some(promise)
        };
        parsed().unwrap_or_default()
    }

    /// How many more members must be seen, besides those of `seen`, before the most advanced of all is sure to have
    /// every acknowledged commit: any `quorum` of the members and those seen must have one in common.
    #[must_use]
    pub fn still_to_see(&self, seen: &BTreeSet<NodeName>) -> usize {
        let seen = self.members.intersection(seen).count();
        (self.members.len() + 1).saturating_sub(self.quorum + seen)
    }

    /// Whether it holds wherever `stronger` holds.
    #[must_use]
    pub fn follows_from(&self, stronger: &Self) -> bool {
        let elsewhere = stronger.members.difference(&self.members).count();
        stronger.quorum.saturating_sub(elsewhere) >= self.quorum
    }

    /// The strongest that follows from both.
    fn common(&self, other: &Self) -> Self {
        let quorum = self.quorum.min(other.quorum);
        Self::new(self.members.union(&other.members).cloned().collect(), quorum)
    }
}

/// The next step from `recorded` to `wanted`, while the primary's setting is `setting`. `arrived`: the setting is in
/// force, and what was acknowledged before it was is on `quorum` of its members.
#[must_use]
pub fn step(recorded: &Promise, setting: &str, wanted: &Promise, arrived: bool) -> PromiseStep {
    let told = setting == wanted.setting();
    let in_force = if told { Cow::Borrowed(wanted) } else { Cow::Owned(Promise::parse(setting)) };
    if !recorded.follows_from(&in_force) {
        // told by someone else: the record must not claim more
        return PromiseStep::Record(recorded.common(&in_force));
    }
    if !told {
        return match recorded.follows_from(wanted) {
            true => PromiseStep::Set(wanted.clone()),
            false => PromiseStep::Record(recorded.common(wanted)),
        };
    }
    match (recorded == wanted, arrived) {
        (true, _) => PromiseStep::Kept,
        (false, true) => PromiseStep::Record(wanted.clone()),
        (false, false) => PromiseStep::CatchingUp,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(names: &[&str], quorum: usize) -> Promise {
        Promise::new(names.iter().map(|name| NodeName::new(name)).collect(), quorum)
    }

    #[test]
    fn settings_are_postgresqls() {
        assert_eq!(of(&["b", "c"], 1).setting(), "ANY 1 (\"b\", \"c\")");
        assert_eq!(of(&["b"], 2).setting(), "ANY 1 (\"b\")");
        assert_eq!(Promise::none().setting(), "");
        for promise in [of(&["b", "c"], 1), of(&["b", "c"], 2), Promise::none()] {
            assert_eq!(Promise::parse(&promise.setting()), promise);
        }
        for other in ["*", "b", "FIRST 1 (b)", "ANY 1 (b)", "ANY 1 (\"b\"", "ANY 3 (\"b\")"] {
            assert_eq!(Promise::parse(other), Promise::none(), "{other}");
        }
    }

    #[test]
    fn who_must_be_seen() {
        let seen = |names: &[&str]| of(names, 1).members;
        assert_eq!(of(&["b", "c"], 1).still_to_see(&seen(&["b", "c"])), 0);
        assert_eq!(of(&["b", "c"], 1).still_to_see(&seen(&["b"])), 1);
        assert_eq!(of(&["b", "c"], 1).still_to_see(&seen(&["d"])), 2);
        assert_eq!(of(&["b", "c"], 2).still_to_see(&seen(&["b"])), 0);
        assert_eq!(of(&["b", "c", "d", "e"], 2).still_to_see(&seen(&["b", "c", "d"])), 0);
        assert_eq!(of(&["b", "c", "d", "e"], 2).still_to_see(&seen(&["b", "c"])), 1);
    }

    #[test]
    fn weaker_is_recorded_first_and_stronger_last() {
        let (both, one) = (of(&["b", "c"], 1), of(&["b"], 1));
        // a member leaves
        assert_eq!(step(&both, &both.setting(), &one, true), PromiseStep::Set(one.clone()));
        assert_eq!(step(&both, &one.setting(), &one, false), PromiseStep::CatchingUp);
        assert_eq!(step(&both, &one.setting(), &one, true), PromiseStep::Record(one.clone()));
        assert_eq!(step(&one, &one.setting(), &one, true), PromiseStep::Kept);
        // and comes back
        assert_eq!(step(&one, &one.setting(), &both, true), PromiseStep::Record(both.clone()));
        assert_eq!(step(&both, &one.setting(), &both, true), PromiseStep::Set(both.clone()));
        // someone else has told the primary something
        assert_eq!(step(&both, "", &both, true), PromiseStep::Record(Promise::none()));
        assert_eq!(step(&both, "ANY 1 (\"d\")", &both, true), PromiseStep::Record(of(&["b", "c", "d"], 1)));
        assert_eq!(step(&Promise::none(), "b", &both, true), PromiseStep::Set(both.clone()));
        // nothing is promised any more, and again
        assert_eq!(step(&one, &one.setting(), &Promise::none(), true), PromiseStep::Record(Promise::none()));
        assert_eq!(step(&Promise::none(), "", &one, false), PromiseStep::Set(one.clone()));
        assert_eq!(step(&Promise::none(), &one.setting(), &one, false), PromiseStep::CatchingUp);
    }

    fn any_promise() -> impl Strategy<Value = Promise> {
        (proptest::collection::btree_set(0u8..5, 0..5), 0usize..4).prop_map(|(members, quorum)| {
            Promise::new(members.iter().map(|i| NodeName::new(&i.to_string())).collect(), quorum)
        })
    }

    /// Where each acknowledged commit is, by the member's number.
    type Commit = BTreeSet<NodeName>;

    fn holds(promise: &Promise, commits: &[Commit]) -> bool {
        commits.iter().all(|commit| promise.members.intersection(commit).count() >= promise.quorum)
    }

    proptest! {
        /// From any promise to any other, with commits in the worst places all the way: the record never lies,
        /// and it arrives.
        #[test]
        fn the_record_never_claims_more(from in any_promise(), to in any_promise(), choices in proptest::collection::vec(any::<u32>(), 64)) {
            let (mut recorded, mut setting) = (from.clone(), from);
            let mut commits: Vec<Commit> = Vec::new();
            let mut before = 0;
            for (i, choice) in choices.iter().enumerate() {
                // a commit is acknowledged by any quorum of the setting's members
                let mut members: Vec<_> = setting.members.iter().cloned().collect();
                let from = if members.is_empty() { 0 } else { *choice as usize % members.len() };
                members.rotate_left(from);
                commits.push(members.into_iter().take(setting.quorum).collect());
                // every third time, what was acknowledged before the setting has arrived at a quorum of its members
                let arrived = i % 3 == 2;
                if arrived {
                    let quorum: Vec<_> = setting.members.iter().take(setting.quorum).cloned().collect();
                    commits[..before].iter_mut().for_each(|commit| commit.extend(quorum.iter().cloned()));
                }
                match step(&recorded, &setting.setting(), &to, arrived) {
                    PromiseStep::Record(promise) => recorded = promise,
                    PromiseStep::Set(promise) => {
                        setting = promise;
                        before = commits.len();
                    }
                    PromiseStep::Kept | PromiseStep::CatchingUp => {}
                }
                prop_assert!(recorded.follows_from(&setting), "{recorded:?} {setting:?}");
                prop_assert!(holds(&recorded, &commits), "{recorded:?} {setting:?} {commits:?}");
            }
            prop_assert_eq!(&recorded, &to);
            prop_assert_eq!(&setting, &to);
        }
    }
}
