//! What a database's functions and relations do, as far as routing must know it. Pure: rows in, answers out.
//!
//! Invariant: what is not known here is not called reading. A function reads if none of that name is VOLATILE: PostgreSQL
//! refuses to write in one that is not, but not in what it calls (manual, "Function Volatility Categories"). A replica
//! refuses that as well.

use std::{
    collections::{BTreeMap, HashMap},
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
    /// By name, for all that are called so.
    functions: HashMap<Box<str>, Meaning>,
    relations: HashMap<Box<str>, Meaning>,
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
    /// Somebody's transactions here are serializable unless they say otherwise.
    Serializable,
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
            functions: functions.into_iter().map(|name| (name.into(), Meaning::Read)).collect(),
            relations: relations.into_iter().map(|(name, reads)| (name.into(), of(reads))).collect(),
        }
    }

    /// From the rows of a database.
    pub(crate) fn of_rows(rows: &[Row]) -> Self {
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        let mut catalog = Self { version: VERSIONS.fetch_add(1, Ordering::Relaxed), ..Self::default() };
        if rows.contains(&Row::Serializable) {
            // replicas refuse that: nothing is for them
            return catalog;
        }
        for row in rows {
            match row {
                Row::Function { name, reads } => {
                    note(&mut catalog.functions, name, of(*reads || HARMLESS.contains(&name.as_str())));
                }
                Row::Table { name, replicated, .. } => note(&mut catalog.relations, name, of(*replicated)),
                Row::View { .. } | Row::Serializable => {}
            }
        }
        // policies first: what they make of their tables holds for views as well
        for row in rows {
            let Row::Table { name, checks, .. } = row else { continue };
            for check in checks {
                let meaning = grammar::meaning(format!("SELECT {check}").as_bytes(), &catalog);
                note(&mut catalog.relations, name, meaning);
            }
        }
        catalog.judge_views(rows);
        catalog
    }

    /// Views are what they are made of; other views may be among it. A name is judged when all views called so can be.
    fn judge_views(&mut self, rows: &[Row]) {
        let mut left: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in rows {
            if let Row::View { name, definition } = row {
                left.entry(name).or_default().push(definition);
            }
        }
        loop {
            let judge = |definitions: &Vec<&str>| {
                definitions.iter().map(|text| grammar::meaning(text.as_bytes(), self)).min().filter(|m| m.reads())
            };
            let judged: Vec<_> = left.iter().filter_map(|(name, all)| Some((*name, judge(all)?))).collect();
            if judged.is_empty() {
                break;
            }
            for (name, meaning) in judged {
                left.remove(name);
                note(&mut self.relations, name, meaning);
            }
        }
        for name in left.into_keys() {
            note(&mut self.relations, name, Meaning::Unsure);
        }
    }

    pub(crate) fn of_function(&self, name: &str) -> Meaning {
        if FUNCTIONS_OF_THE_NODE.iter().any(|start| name.starts_with(start)) {
            return Meaning::Unsure;
        }
        self.functions.get(name).copied().unwrap_or(Meaning::Unsure)
    }

    pub(crate) fn of_relation(&self, schema: Option<&str>, name: &str) -> Meaning {
        // a temporary table is one session's, whatever else is called so
        if schema.is_some_and(|schema| OF_THE_NODE.contains(&schema) || schema.starts_with("pg_temp")) {
            return Meaning::Unsure;
        }
        self.relations.get(name).copied().unwrap_or(Meaning::Unsure)
    }
}

fn of(reads: bool) -> Meaning {
    if reads { Meaning::Read } else { Meaning::Unsure }
}

/// A name stands for all that are called so.
fn note(names: &mut HashMap<Box<str>, Meaning>, name: &str, meaning: Meaning) {
    names.entry(name.into()).and_modify(|all| *all = meaning.min(*all)).or_insert(meaning);
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
            view("guarded_view", " SELECT * FROM counted;"),
        ]);
        let reads = |name| catalog.of_relation(None, name).reads();
        for name in ["top", "middle", "t", "guarded"] {
            assert!(reads(name), "{name}");
        }
        for name in ["writes", "above", "round", "u", "counted", "guarded_view", "unknown"] {
            assert!(!reads(name), "{name}");
        }
        let calls = ["random", "count", "pay", "txid_current"].map(|name| catalog.of_function(name).reads());
        assert_eq!(calls, [true, true, false, false]);
        let serializable = Catalog::of_rows(&[table("t", true, &[]), Row::Serializable]);
        assert!(!serializable.of_relation(None, "t").reads());
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
            assert!(!catalog.of_relation(None, "t").reads() && !catalog.of_function("f").reads());
            assert!(!catalog.of_relation(None, "v").reads());
        }
    }
}
