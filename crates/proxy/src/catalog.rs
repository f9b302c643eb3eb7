//! What a database's functions and relations do, as far as routing must know it. Pure: rows in, answers out.
//!
//! Invariant: what is not known here is not called reading. A function reads if none of that name is VOLATILE, which
//! PostgreSQL holds it to: it refuses to write in one that is not (CREATE FUNCTION, "Function Volatility Categories").

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::grammar::{self, Meaning};

/// Volatile, because their results differ from call to call, and yet they write nothing.
const HARMLESS: [&str; 4] = ["random", "clock_timestamp", "timeofday", "gen_random_uuid"];
/// What is read from here is the node's own, or the session's.
const OF_THE_NODE: [&str; 2] = ["pg_catalog", "information_schema"];
/// Functions about the node, the session or its transaction.
const FUNCTIONS_OF_THE_NODE: [&str; 4] = ["pg_", "txid_", "inet_", "lo_"];

/// The functions and relations of one database.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// Different for each that was ever made.
    pub(crate) version: u64,
    functions: HashSet<Box<str>>,
    /// Whether all relations of that name can be read on a replica.
    relations: HashMap<Box<str>, bool>,
}

/// One row of the catalog, as `sql/catalog.sql` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    /// All functions of a name, and whether none is volatile.
    Function {
        name: String,
        reads: bool,
    },
    /// A table that is on replicas as well, or not; `checks` are expressions that each reading evaluates: policies.
    Table {
        name: String,
        replicated: bool,
        checks: Vec<String>,
    },
    View {
        name: String,
        definition: String,
    },
}

impl Catalog {
    #[cfg(test)]
    pub(crate) fn new<'a>(
        version: u64,
        functions: impl IntoIterator<Item = &'a str>,
        relations: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> Self {
        Self {
            version,
            functions: functions.into_iter().map(Into::into).collect(),
            relations: relations.into_iter().map(|(name, reads)| (name.into(), reads)).collect(),
        }
    }

    /// From the rows of a database.
    pub(crate) fn of_rows(rows: &[Row]) -> Self {
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        let mut catalog = Self { version: VERSIONS.fetch_add(1, Ordering::Relaxed), ..Self::default() };
        let mut writers: HashSet<&str> = HashSet::new();
        for row in rows {
            let Row::Function { name, reads } = row else { continue };
            if *reads || HARMLESS.contains(&name.as_str()) {
                catalog.functions.insert(name.as_str().into());
            } else {
                writers.insert(name);
            }
        }
        catalog.functions.retain(|name| !writers.contains(&**name));
        for row in rows {
            if let Row::Table { name, replicated, .. } = row {
                catalog.note_relation(name, *replicated);
            }
        }
        catalog.judge_views(rows);
        for row in rows {
            let Row::Table { name, checks, .. } = row else { continue };
            let reads =
                |check: &String| grammar::meaning(format!("SELECT {check}").as_bytes(), &catalog) == Meaning::Read;
            if !checks.iter().all(reads) {
                catalog.relations.insert(name.as_str().into(), false);
            }
        }
        catalog
    }

    /// A name stands for all relations that are called so.
    fn note_relation(&mut self, name: &str, reads: bool) {
        self.relations.entry(name.into()).and_modify(|all| *all &= reads).or_insert(reads);
    }

    /// Views read if what they are made of does; other views may be among it.
    fn judge_views(&mut self, rows: &[Row]) {
        let mut left: Vec<(&str, &str)> = rows
            .iter()
            .filter_map(|row| match row {
                Row::View { name, definition } => Some((name.as_str(), definition.as_str())),
                Row::Function { .. } | Row::Table { .. } => None,
            })
            .collect();
        loop {
            let before = left.len();
            let read: Vec<(&str, &str)> = left
                .extract_if(.., |(_, definition)| grammar::meaning(definition.as_bytes(), self) == Meaning::Read)
                .collect();
            for (name, _) in read {
                self.note_relation(name, true);
            }
            if left.len() == before {
                break;
            }
        }
        for (name, _) in left {
            self.note_relation(name, false);
        }
    }

    pub(crate) fn reads_function(&self, name: &str) -> bool {
        self.functions.contains(name) && !FUNCTIONS_OF_THE_NODE.iter().any(|start| name.starts_with(start))
    }

    pub(crate) fn reads_relation(&self, schema: Option<&str>, name: &str) -> bool {
        !schema.is_some_and(|schema| OF_THE_NODE.contains(&schema))
            && self.relations.get(name).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str, definition: &str) -> Row {
        Row::View { name: name.to_owned(), definition: definition.to_owned() }
    }

    fn function(name: &str, reads: bool) -> Row {
        Row::Function { name: name.to_owned(), reads }
    }

    fn table(name: &str, replicated: bool, checks: &[&str]) -> Row {
        Row::Table { name: name.to_owned(), replicated, checks: checks.iter().map(|c| (*c).to_owned()).collect() }
    }

    #[test]
    fn views_are_what_they_are_made_of() {
        let catalog = Catalog::of_rows(&[
            view("top", " SELECT * FROM middle;"),
            view("middle", " SELECT count(*) FROM t;"),
            view("writes", " SELECT pay(t.id) FROM t;"),
            view("above", " SELECT * FROM writes;"),
            view("round", " SELECT * FROM round;"),
            table("t", true, &[]),
            table("u", false, &[]),
            table("guarded", true, &["(owner = CURRENT_USER)"]),
            table("counted", true, &["pay(id)"]),
            function("count", true),
            function("pay", false),
            function("random", false),
            function("txid_current", true),
        ]);
        let reads = |name| catalog.reads_relation(None, name);
        for name in ["top", "middle", "t", "guarded"] {
            assert!(reads(name), "{name}");
        }
        for name in ["writes", "above", "round", "u", "counted", "unknown"] {
            assert!(!reads(name), "{name}");
        }
        assert!(catalog.reads_function("random") && !catalog.reads_function("pay"));
        assert!(!catalog.reads_function("txid_current"));
    }

    #[test]
    fn a_name_stands_for_all_that_are_called_so() {
        let rows = [
            table("t", true, &[]),
            table("t", false, &[]),
            function("f", true),
            function("f", false),
            view("v", "SELECT 1"),
            view("v", "SELECT f()"),
        ];
        for rows in [rows.to_vec(), rows.iter().rev().cloned().collect()] {
            let catalog = Catalog::of_rows(&rows);
            assert!(!catalog.reads_relation(None, "t") && !catalog.reads_function("f"));
            assert!(!catalog.reads_relation(None, "v"));
        }
    }
}
