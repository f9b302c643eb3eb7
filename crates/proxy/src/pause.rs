//! Which databases an operator holds back or closes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Databases paused: some, or all but some.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pauses {
    all: bool,
    /// Those paused; under `all`, those that go on.
    named: BTreeSet<Arc<str>>,
}

impl Pauses {
    pub(crate) fn pause(&mut self, database: Option<&Arc<str>>) {
        self.set(database, true);
    }

    pub(crate) fn resume(&mut self, database: Option<&Arc<str>>) {
        self.set(database, false);
    }

    fn set(&mut self, database: Option<&Arc<str>>, paused: bool) {
        match database {
            None => *self = Self { all: paused, named: BTreeSet::new() },
            Some(database) if self.all == paused => _ = self.named.remove(database),
            Some(database) => _ = self.named.insert(database.clone()),
        }
    }

    pub(crate) fn holds(&self, database: &str) -> bool {
        self.all != self.named.contains(database)
    }
}

/// How often databases were killed: a login that began before the last time must not go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kills {
    all: u64,
    named: BTreeMap<Arc<str>, u64>,
}

impl Kills {
    pub(crate) fn kill(&mut self, database: Option<&Arc<str>>) {
        match database {
            None => self.all += 1,
            Some(database) => *self.named.entry(database.clone()).or_default() += 1,
        }
    }

    /// It only grows.
    pub(crate) fn of(&self, database: &str) -> u64 {
        self.all + self.named.get(database).copied().unwrap_or_default()
    }
}

/// What logins heed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gates {
    pub(crate) pauses: Pauses,
    pub(crate) kills: Kills,
    /// Databases that admit no new clients.
    pub(crate) disabled: BTreeSet<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_by_database() {
        let mut kills = Kills::default();
        kills.kill(Some(&"a".into()));
        assert_eq!((kills.of("a"), kills.of("b")), (1, 0));
        kills.kill(None);
        assert_eq!((kills.of("a"), kills.of("b")), (2, 1));
    }

    #[test]
    fn one_of_all_may_go_on() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut pauses = Pauses::default();
        let held = |pauses: &Pauses| (pauses.holds("a"), pauses.holds("b"));
        pauses.pause(Some(&a));
        assert_eq!(held(&pauses), (true, false));
        pauses.resume(Some(&b));
        assert_eq!(held(&pauses), (true, false));
        pauses.resume(Some(&a));
        assert_eq!(held(&pauses), (false, false));
        pauses.pause(None);
        pauses.resume(Some(&b));
        assert_eq!(held(&pauses), (true, false));
        pauses.pause(Some(&b));
        assert_eq!(held(&pauses), (true, true));
        pauses.resume(None);
        assert_eq!(pauses, Pauses::default());
    }
}
