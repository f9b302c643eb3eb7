//! `migrations/`: `V1_2__name.sql`, `U1_2__name.sql`, `R__name.sql`, named as Flyway names them.

use std::{cmp::Ordering, collections::BTreeMap, fmt, path::Path};

use crate::diagnostic::Diagnostic;

/// A migration's version: numbers, most significant first. `1` equals `1.0`.
#[derive(Debug, Clone)]
pub struct Version(Vec<u64>);

impl Version {
    /// From `1`, `1.2` or `1_2`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |p: &str| p.bytes().all(|b| b.is_ascii_digit()).then(|| p.parse().ok()).flatten();
        text.split(['.', '_']).map(plain).collect::<Option<Vec<u64>>>().map(Self)
    }

    fn significant(&self) -> &[u64] {
        let end = self.0.iter().rposition(|n| *n != 0).map_or(0, |at| at + 1);
        self.0.get(..end).unwrap_or_default()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, n) in self.0.iter().enumerate() {
            write!(f, "{}{n}", if i > 0 { "." } else { "" })?;
        }
        Ok(())
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.significant() == other.significant()
    }
}
impl Eq for Version {}
impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.significant().cmp(other.significant())
    }
}

/// When a migration runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationKind {
    /// Once, in the order of versions.
    Versioned(Version),
    /// To take the versioned one back.
    Undo(Version),
    /// After the versioned ones, each time its text changed.
    Repeatable,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    pub kind: MigrationKind,
    /// From the file's name, underscores as spaces.
    pub description: String,
    /// The file's name.
    pub script: String,
    pub sql: String,
}

const FORM: &str = "migrations are called V1__name.sql, U1__name.sql (undo) or R__name.sql (repeatable)";

pub(super) fn parse(origin: &Path, files: &BTreeMap<String, String>, found: &mut Vec<Diagnostic>) -> Vec<Migration> {
    let mut migrations: Vec<Migration> = Vec::new();
    let mut wrong = |script: &str, message: String, hint: &str| {
        found.push(Diagnostic {
            path: origin.join("migrations").join(script),
            line: 1,
            column: 1,
            snippet: script.to_owned(),
            width: script.chars().count().max(1),
            message,
            hint: Some(hint.to_owned()),
        });
    };
    for (script, sql) in super::in_folder(files, "migrations") {
        match parse_name(script) {
            Ok((kind, description)) => {
                migrations.push(Migration { kind, description, script: script.to_owned(), sql: sql.to_owned() });
            }
            Err(message) => wrong(script, message, FORM),
        }
    }
    migrations.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.script.cmp(&b.script)));
    for pair in migrations.windows(2) {
        let [a, b] = pair else { continue };
        if order(a) == order(b) {
            wrong(&b.script, format!("{} has the same version or name", a.script), "give each migration its own");
        }
    }
    for undo in migrations.iter().filter(|m| matches!(m.kind, MigrationKind::Undo(_))) {
        let undoes = |m: &Migration| matches!((&m.kind, &undo.kind), (MigrationKind::Versioned(v), MigrationKind::Undo(u)) if v == u);
        if !migrations.iter().any(undoes) {
            wrong(
                &undo.script,
                "it takes back a version that does not exist".to_owned(),
                "remove it, or correct its version",
            );
        }
    }
    migrations
}

/// Versioned by version, each before its undo; then repeatable by description.
fn order(migration: &Migration) -> (bool, Option<&Version>, u8, &str) {
    match &migration.kind {
        MigrationKind::Versioned(version) => (false, Some(version), 0, ""),
        MigrationKind::Undo(version) => (false, Some(version), 1, ""),
        MigrationKind::Repeatable => (true, None, 2, &migration.description),
    }
}

fn parse_name(script: &str) -> Result<(MigrationKind, String), String> {
    let stem = script.strip_suffix(".sql").ok_or("the name does not end in .sql")?;
    let (prefix, description) = stem.split_once("__").ok_or("two underscores must stand before the description")?;
    if description.trim_matches('_').is_empty() {
        return Err("the description is missing".to_owned());
    }
    let version = |text: &str| Version::parse(text).ok_or_else(|| format!("`{text}` is not a version"));
    let kind = match (prefix.split_at_checked(1), prefix) {
        (_, "R") => MigrationKind::Repeatable,
        (Some(("V", text)), _) => MigrationKind::Versioned(version(text)?),
        (Some(("U", text)), _) => MigrationKind::Undo(version(text)?),
        _ => return Err(format!("`{prefix}` is neither V, U with a version nor R")),
    };
    Ok((kind, description.replace('_', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_by_number() {
        let v = |t| Version::parse(t).unwrap();
        assert!(v("2") < v("10"));
        assert!(v("1.9") < v("1_10"));
        assert_eq!(v("1"), v("1.0"));
        assert!(v("1") < v("1.0.1"));
        for bad in ["", "1.", "a", "1..2", "+1", "99999999999999999999999"] {
            assert!(Version::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn files_are_in_running_order() {
        let names = ["R__views.sql", "V10__b.sql", "V2__a.sql", "U2__a.sql", "V1_1__first_thing.sql", "R__a.sql"];
        let files = names.iter().map(|n| (format!("migrations/{n}"), String::new())).collect();
        let mut found = Vec::new();
        let migrations = parse(Path::new("p"), &files, &mut found);
        assert_eq!(found, []);
        let scripts: Vec<_> = migrations.iter().map(|m| m.script.as_str()).collect();
        assert_eq!(
            scripts,
            ["V1_1__first_thing.sql", "V2__a.sql", "U2__a.sql", "V10__b.sql", "R__a.sql", "R__views.sql"]
        );
        assert_eq!(migrations[0].description, "first thing");
    }
}
