//! What is applied, what is to be, and what must not be: pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    MigrateError, Migration, Version,
    checksum::checksum,
    history::{Applied, History},
};

/// Where a script stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It ran, with the text that it has now.
    Applied,
    /// It will run next time.
    Pending,
    /// Repeatable: it ran with another text and will run again.
    Outdated,
    /// Versioned: it ran with another text. An error.
    Changed { applied: i32, found: i32 },
    /// It ran but is not in the pack. An error.
    Missing,
    /// Its version is below one that ran. An error.
    OutOfOrder { newest: String },
    /// Another tool left it half done. An error.
    Failed,
    /// The database had what it makes when another tool took over: it never runs.
    BelowBaseline,
}

/// One script with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub version: Option<String>,
    pub description: String,
    pub script: String,
    pub state: State,
    /// As the server wrote it, in its own zone.
    pub installed_on: Option<String>,
    pub execution_time_ms: Option<i32>,
}

/// The history as it counts today.
struct Standing<'h> {
    versioned: BTreeMap<Version, &'h Applied>,
    repeatable: BTreeMap<&'h str, &'h Applied>,
    baseline: Option<Version>,
}

impl<'h> Standing<'h> {
    /// Later rows overrule earlier ones: an undone version is free again.
    fn of(history: &'h History) -> Result<Self, MigrateError> {
        let mut standing = Self { versioned: BTreeMap::new(), repeatable: BTreeMap::new(), baseline: None };
        for row in &history.0 {
            let Some(version) = &row.version else {
                if row.kind == "SQL" {
                    standing.repeatable.insert(&row.script, row);
                }
                continue;
            };
            let version = Version::parse(version, &row.script)?;
            match row.kind.as_str() {
                "BASELINE" => standing.baseline = standing.baseline.max(Some(version)),
                kind if kind.starts_with("UNDO") || kind == "DELETE" => {
                    standing.versioned.remove(&version);
                }
                _ => {
                    standing.versioned.insert(version, row);
                }
            }
        }
        Ok(standing)
    }
}

/// All scripts in the order in which they run.
pub(crate) fn entries(migrations: &[Migration], history: &History) -> Result<Vec<Entry>, MigrateError> {
    let mut standing = Standing::of(history)?;
    let newest = standing.versioned.keys().max().cloned().max(standing.baseline.clone());
    let (versioned, repeatable) = sorted(migrations)?;

    let mut placed: Vec<(Version, Entry)> = Vec::new();
    for (version, migration) in versioned {
        let row = standing.versioned.remove(&version);
        let state = match row {
            Some(row) => state_of(row, migration, |applied, found| State::Changed { applied, found }),
            None if standing.baseline.as_ref().is_some_and(|b| version <= *b) => State::BelowBaseline,
            None => match &newest {
                Some(newest) if version < *newest => State::OutOfOrder { newest: newest.to_string() },
                _ => State::Pending,
            },
        };
        placed.push((version, entry(migration, row, state)));
    }
    for (version, row) in standing.versioned {
        placed.push((version, missing(row)));
    }
    placed.sort_by(|a, b| a.0.cmp(&b.0));

    let mut entries: Vec<Entry> = placed.into_iter().map(|(_, entry)| entry).collect();
    for migration in repeatable {
        let row = standing.repeatable.get(migration.script.as_str()).copied();
        let state = row.map_or(State::Pending, |row| state_of(row, migration, |_, _| State::Outdated));
        entries.push(entry(migration, row, state));
    }
    Ok(entries)
}

/// The scripts to run, in order; refused if anything applied is not what the pack has.
pub(crate) fn pending<'m>(migrations: &'m [Migration], history: &History) -> Result<Vec<&'m Migration>, MigrateError> {
    let mut pending = Vec::new();
    for entry in entries(migrations, history)? {
        let script = entry.script;
        match entry.state {
            State::Applied | State::BelowBaseline => {}
            State::Pending | State::Outdated => pending.extend(migrations.iter().find(|m| m.script == script)),
            State::Changed { applied, found } => return Err(MigrateError::Changed { script, applied, found }),
            State::Missing => return Err(MigrateError::Missing { script }),
            State::OutOfOrder { newest } => return Err(MigrateError::OutOfOrder { script, newest }),
            State::Failed => return Err(MigrateError::FailedBefore { script }),
        }
    }
    Ok(pending)
}

type Sorted<'m> = (Vec<(Version, &'m Migration)>, Vec<&'m Migration>);

/// Versioned by version; repeatable by description, as Flyway runs them.
fn sorted(migrations: &[Migration]) -> Result<Sorted<'_>, MigrateError> {
    let (mut versioned, mut repeatable) = (Vec::new(), Vec::new());
    for migration in migrations {
        match &migration.version {
            Some(version) => versioned.push((Version::parse(version, &migration.script)?, migration)),
            None => repeatable.push(migration),
        }
    }
    versioned.sort_by(|a, b| a.0.cmp(&b.0));
    repeatable.sort_by(|a, b| a.description.cmp(&b.description));
    let twice =
        |a: &Migration, b: &Migration| MigrateError::Twice { first: a.script.clone(), second: b.script.clone() };
    if let Some([a, b]) = versioned.array_windows().find(|[a, b]| a.0 == b.0) {
        return Err(twice(a.1, b.1));
    }
    if let Some([a, b]) = repeatable.array_windows().find(|[a, b]| a.description == b.description) {
        return Err(twice(a, b));
    }
    Ok((versioned, repeatable))
}

/// A row without a checksum was written by hand or by code: there is nothing to compare.
fn state_of(row: &Applied, migration: &Migration, differs: impl FnOnce(i32, i32) -> State) -> State {
    let found = checksum(&migration.sql);
    match row.checksum {
        _ if !row.success => State::Failed,
        Some(applied) if applied != found => differs(applied, found),
        Some(_) | None => State::Applied,
    }
}

fn entry(migration: &Migration, row: Option<&Applied>, state: State) -> Entry {
    Entry {
        version: migration.version.clone(),
        description: migration.description.clone(),
        script: migration.script.clone(),
        state,
        installed_on: row.map(|r| r.installed_on.clone()),
        execution_time_ms: row.map(|r| r.execution_time_ms),
    }
}

fn missing(row: &Applied) -> Entry {
    Entry {
        version: row.version.clone(),
        description: row.description.clone(),
        script: row.script.clone(),
        state: if row.success { State::Missing } else { State::Failed },
        installed_on: Some(row.installed_on.clone()),
        execution_time_ms: Some(row.execution_time_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(version: Option<&str>, script: &str, sql: &str) -> Migration {
        Migration {
            version: version.map(str::to_owned),
            description: script.to_owned(),
            script: script.to_owned(),
            sql: sql.to_owned(),
        }
    }

    fn row(kind: &str, version: Option<&str>, script: &str, sql: &str) -> Applied {
        Applied {
            version: version.map(str::to_owned),
            description: script.to_owned(),
            kind: kind.to_owned(),
            script: script.to_owned(),
            checksum: Some(checksum(sql)),
            installed_on: String::new(),
            execution_time_ms: 1,
            success: true,
        }
    }

    fn pack() -> Vec<Migration> {
        vec![
            migration(None, "R__b.sql", "b"),
            migration(Some("10"), "V10__c.sql", "c"),
            migration(Some("2.1"), "V2_1__b.sql", "b"),
            migration(None, "R__a.sql", "a"),
            migration(Some("2"), "V2__a.sql", "a"),
        ]
    }

    fn scripts(history: Vec<Applied>) -> Result<Vec<String>, MigrateError> {
        let pack = pack();
        let pending = pending(&pack, &History(history))?;
        Ok(pending.into_iter().map(|m| m.script.clone()).collect())
    }

    #[test]
    fn versions_in_order_then_repeatable() {
        assert_eq!(scripts(vec![]).unwrap(), ["V2__a.sql", "V2_1__b.sql", "V10__c.sql", "R__a.sql", "R__b.sql"]);
    }

    #[test]
    fn only_what_is_new_or_changed() {
        let history = vec![
            row("SQL", Some("2"), "V2__a.sql", "a"),
            row("SQL", None, "R__a.sql", "old"),
            row("SQL", None, "R__b.sql", "old"),
            row("SQL", None, "R__b.sql", "b"),
            row("SQL", None, "R__gone.sql", "x"),
        ];
        assert_eq!(scripts(history).unwrap(), ["V2_1__b.sql", "V10__c.sql", "R__a.sql"]);
    }

    #[test]
    fn differences_are_refused() {
        let changed = scripts(vec![row("SQL", Some("2"), "V2__a.sql", "other")]);
        assert!(matches!(changed, Err(MigrateError::Changed { script, .. }) if script == "V2__a.sql"));
        let missing = scripts(vec![row("SQL", Some("1"), "V1__gone.sql", "x")]);
        assert!(matches!(missing, Err(MigrateError::Missing { script }) if script == "V1__gone.sql"));
        let order = scripts(vec![row("SQL", Some("2"), "V2__a.sql", "a"), row("SQL", Some("10"), "V10__c.sql", "c")]);
        assert!(
            matches!(order, Err(MigrateError::OutOfOrder { script, newest }) if script == "V2_1__b.sql" && newest == "10")
        );
        let failed = Applied { success: false, ..row("SQL", Some("2"), "V2__a.sql", "a") };
        assert!(matches!(scripts(vec![failed]), Err(MigrateError::FailedBefore { .. })));
    }

    #[test]
    fn rows_of_flyway_count() {
        let baseline = vec![row("BASELINE", Some("2.1"), "<< Flyway Baseline >>", "")];
        assert_eq!(scripts(baseline).unwrap(), ["V10__c.sql", "R__a.sql", "R__b.sql"]);
        let undone = vec![
            row("SQL", Some("2"), "V2__a.sql", "a"),
            row("SQL", Some("2.1"), "V2_1__b.sql", "b"),
            row("UNDO_SQL", Some("2.1"), "U2_1__b.sql", "u"),
        ];
        assert_eq!(scripts(undone).unwrap(), ["V2_1__b.sql", "V10__c.sql", "R__a.sql", "R__b.sql"]);
    }

    #[test]
    fn one_version_twice() {
        let twice = [migration(Some("1"), "V1__a.sql", ""), migration(Some("1.0"), "V1_0__b.sql", "")];
        assert!(matches!(pending(&twice, &History::default()), Err(MigrateError::Twice { .. })));
    }
}
