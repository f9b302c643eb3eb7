//! What changed declarations mean for what is built, in words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Models, star::Model};

/// What will be done to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Create,
    Rebuild,
    Drop,
    Unchanged,
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub model: String,
    pub kind: ChangeKind,
    /// Why, a sentence each.
    pub reasons: Vec<String>,
}

impl Model {
    /// What it is made from, an aspect a line: kept in `audit.models`, compared by [`plan`].
    #[must_use]
    pub fn declaration(&self) -> String {
        let mut lines = vec![format!("kind: {}", self.kind())];
        let mut line = |aspect: String, value: String| lines.push(format!("{aspect}: {}", value.replace('\n', " ")));
        match self {
            Self::Dimension(m) => {
                line("source".into(), m.source.to_string());
                line("key".into(), m.key.join(", "));
                line("surrogate key".into(), m.surrogate.clone());
                for (name, e) in &m.attributes {
                    line(format!("attribute {name}"), e.sql.clone());
                }
                if m.historical {
                    line("tracked".into(), m.tracked.iter().cloned().collect::<Vec<_>>().join(", "));
                }
                for (name, value) in &m.unknown {
                    line(format!("unknown {name}"), value.clone());
                }
            }
            Self::Seed(m) => {
                line("surrogate key".into(), m.surrogate.clone());
                line("columns".into(), m.columns.join(", "));
                line("row unknown".into(), m.unknown.join(", "));
                for (i, row) in m.rows.iter().enumerate() {
                    line(format!("row {}", i + 1), row.join(", "));
                }
            }
            Self::Date(m) => line("years".into(), format!("{} to {}", m.first_year, m.last_year)),
            Self::Fact(m) => {
                line("source".into(), m.source.to_string());
                line("grain".into(), m.grain.join(", "));
                let on = |on: &[(String, crate::Expression)]| {
                    on.iter().map(|(c, e)| format!("{c} = {}", e.sql)).collect::<Vec<_>>().join(" and ")
                };
                for join in &m.joins {
                    line(format!("join {}", join.source), on(&join.on));
                }
                for (i, aggregate) in m.aggregates.iter().enumerate() {
                    line(format!("aggregate {} of {}", i + 1, aggregate.source), on(&aggregate.on));
                    for (name, e) in &aggregate.columns {
                        line(format!("column {name}"), e.sql.clone());
                    }
                }
                for lookup in &m.lookups {
                    let key = lookup.key.iter().map(|e| e.sql.clone()).collect::<Vec<_>>().join(", ");
                    let as_of = lookup.as_of.as_ref().map(|e| format!(" as of {}", e.sql)).unwrap_or_default();
                    line(format!("lookup {}", lookup.column), format!("{} by {key}{as_of}", lookup.dimension));
                }
                for (name, e) in &m.columns {
                    line(format!("column {name}"), e.sql.clone());
                }
            }
            Self::View(m) => line("query".into(), m.declared.clone()),
        }
        lines.join("\n")
    }
}

/// Compares what was built (`audit.models`: name → declaration) with what is declared now, in build order, drops last.
#[must_use]
pub fn plan(built: &BTreeMap<String, String>, models: &Models) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for model in models.iter() {
        let declaration = model.declaration();
        let (kind, reasons) = match built.get(model.name()) {
            None => (ChangeKind::Create, vec![format!("new {}", model.kind())]),
            Some(old) if *old == declaration => (ChangeKind::Unchanged, Vec::new()),
            Some(old) => (ChangeKind::Rebuild, reasons(old, &declaration)),
        };
        changes.push(Change { model: model.name().to_owned(), kind, reasons });
    }
    follow(models, &mut changes);
    for name in built.keys().filter(|name| models.get(name).is_none()) {
        changes.push(Change {
            model: name.clone(),
            kind: ChangeKind::Drop,
            reasons: vec!["no longer declared".into()],
        });
    }
    changes
}

/// Facts keep surrogate keys: they follow when a dimension that they look up is made anew.
fn follow(models: &Models, changes: &mut [Change]) {
    let anew: Vec<String> =
        changes.iter().filter(|c| c.kind != ChangeKind::Unchanged).map(|c| c.model.clone()).collect();
    for change in changes.iter_mut().filter(|c| c.kind == ChangeKind::Unchanged) {
        let Some(Model::Fact(fact)) = models.get(&change.model) else { continue };
        for lookup in fact.lookups.iter().filter(|l| anew.contains(&l.dimension)) {
            change.kind = ChangeKind::Rebuild;
            change.reasons.push(format!("{} looks up {}, which changes", lookup.column, lookup.dimension));
        }
    }
}

fn reasons(old: &str, new: &str) -> Vec<String> {
    let aspects = |text: &str| -> Vec<(String, String)> {
        text.lines().filter_map(|l| l.split_once(": ")).map(|(a, v)| (a.to_owned(), v.to_owned())).collect()
    };
    let (old, new) = (aspects(old), aspects(new));
    let mut reasons = Vec::new();
    for (aspect, value) in &new {
        match old.iter().find(|(a, _)| a == aspect) {
            None => reasons.push(format!("{aspect} added")),
            Some((_, before)) if before != value => {
                reasons.push(format!("{aspect} changed from `{before}` to `{value}`"))
            }
            Some(_) => {}
        }
    }
    reasons.extend(old.iter().filter(|(a, _)| new.iter().all(|(b, _)| a != b)).map(|(a, _)| format!("{a} removed")));
    if reasons.is_empty() {
        reasons.push("columns in another order".into());
    }
    reasons
}
