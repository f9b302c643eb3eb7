//! Random histories of the three tables, and what they leave, worked out by a plain map.

use std::{collections::BTreeMap, sync::Arc};

use millrace_base::Micros;
use millrace_contract::{Cell, Op, RowHead, Rows, Step, TableSchema};
use proptest::prelude::*;

use super::{Text, customer, customers, end, head, loan, loans, payment, payments, schemas, time_of};

/// One thing that happens on the source. Ids are small, so that they meet.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Insert, or update if it is there; `unchanged` leaves that column's text out of an update.
    Put {
        table: usize,
        id: u32,
        other: u32,
        value: u32,
        unchanged: bool,
    },
    Delete {
        table: usize,
        id: u32,
    },
    /// The row's key becomes `to`, if that is free.
    Rekey {
        table: usize,
        id: u32,
        to: u32,
        unchanged: bool,
    },
    Truncate {
        table: usize,
    },
    /// The transaction ends; the clock may go back.
    Commit {
        clock_back_days: u32,
    },
}

/// What is done with a batch besides committing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// The process ends after the commit and starts again.
    Restart,
    /// The batch is written once and forgotten, then written again.
    Rollback,
    /// It fails at its commit first (a value that does not fit), then is written again.
    Misfit,
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let table = 0..3usize;
    prop_oneof![
        8 => (table.clone(), 1..8u32, 1..8u32, 0..6u32, any::<bool>()).prop_map(|(table, id, other, value, unchanged)| Event::Put { table, id, other, value, unchanged }),
        2 => (table.clone(), 1..8u32).prop_map(|(table, id)| Event::Delete { table, id }),
        2 => (table.clone(), 1..8u32, 1..8u32, any::<bool>()).prop_map(|(table, id, to, unchanged)| Event::Rekey { table, id, to, unchanged }),
        1 => table.prop_map(|table| Event::Truncate { table }),
        4 => (0..4u32).prop_map(|clock_back_days| Event::Commit { clock_back_days }),
    ]
}

pub(crate) fn batches() -> impl Strategy<Value = Vec<(Vec<Event>, Trouble)>> {
    let trouble = prop_oneof![
        6 => Just(Trouble::None), 1 => Just(Trouble::Restart), 1 => Just(Trouble::Rollback), 1 => Just(Trouble::Misfit),
    ];
    prop::collection::vec((prop::collection::vec(event(), 0..12), trouble), 1..7)
}

/// The source: its rows, and where its log stands.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) tables: [BTreeMap<u32, Vec<Text>>; 3],
    pub(crate) lsn: u64,
    clock_back_days: u64,
}

/// The column whose text an update may leave out.
const LEFT_OUT: [usize; 3] = [2, 8, 6];

impl Source {
    pub(crate) fn new() -> Self {
        let mut tables = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
        for id in 1..4 {
            tables[0].insert(id, customer(id, "retail"));
            tables[1].insert(id, loan(id, id, "active", "500.00"));
            tables[2].insert(id, payment(id, id, "10.00", "2024-01-06 00:00:00+00"));
        }
        Self { tables, lsn: 10, clock_back_days: 0 }
    }

    /// The initial copy.
    pub(crate) fn copy(&self) -> Vec<Step> {
        schemas()
            .into_iter()
            .zip(&self.tables)
            .flat_map(|(schema, rows)| {
                let values = rows
                    .values()
                    .enumerate()
                    .map(|(i, v)| (head(Op::Copy, 10, i as u64), v.clone()))
                    .collect::<Vec<_>>();
                [Step::Schema(schema.clone()), super::rows(&schema, &values)]
            })
            .collect()
    }

    fn head(&self, op: Op, sequence: u64) -> RowHead {
        let mut head = head(op, self.lsn, sequence);
        head.commit_time = Micros(time_of(self.lsn).0 - i64::try_from(self.clock_back_days).unwrap() * 86_400_000_000);
        head
    }

    fn row(table: usize, id: u32, other: u32, value: u32) -> Vec<Text> {
        match table {
            0 => customer(id, ["retail", "sme", "corporate"][value as usize % 3]),
            1 => loan(
                id,
                other,
                ["pending", "active", "repaid", "defaulted"][value as usize % 4],
                &format!("{}.00", value * 100),
            ),
            _ => payment(id, other, &format!("{value}.50"), &super::day_of(u64::from(value) * 3)),
        }
    }

    /// Lets the events happen and writes them as capture would; they end with a commit.
    pub(crate) fn happen(&mut self, events: &[Event]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut open: [Option<Rows>; 3] = [None, None, None];
        let schemas = schemas();
        self.lsn += 1;
        self.clock_back_days = 0;
        let mut sequence = 0;
        let push =
            |open: &mut [Option<Rows>; 3], table: usize, head: RowHead, values: &[Text], left_out: Option<usize>| {
                let mut cells = super::cells(values);
                if let Some(column) = left_out {
                    cells[column] = Cell::Unchanged;
                }
                let rows = open[table].get_or_insert_with(|| Rows::new(schemas[table].clone()));
                assert!(rows.push(head, cells));
            };
        for event in events {
            sequence += 1;
            match *event {
                Event::Put { table, id, other, value, unchanged } => {
                    let mut row = Self::row(table, id, other, value);
                    let before = self.tables[table].get(&id).cloned();
                    let op = if before.is_some() { Op::Update } else { Op::Insert };
                    let left_out = before.filter(|_| unchanged).map(|before| {
                        row[LEFT_OUT[table]].clone_from(&before[LEFT_OUT[table]]);
                        LEFT_OUT[table]
                    });
                    push(&mut open, table, self.head(op, sequence), &row, left_out);
                    self.tables[table].insert(id, row);
                }
                Event::Delete { table, id } => {
                    if self.tables[table].remove(&id).is_some() {
                        push(&mut open, table, self.head(Op::Delete, sequence), &key_only(&schemas[table], id), None);
                    }
                }
                Event::Rekey { table, id, to, unchanged } => {
                    if self.tables[table].contains_key(&to) {
                        continue;
                    }
                    let Some(mut row) = self.tables[table].remove(&id) else { continue };
                    push(&mut open, table, self.head(Op::Delete, sequence), &key_only(&schemas[table], id), None);
                    sequence += 1;
                    row[0] = Some(to.to_string());
                    push(&mut open, table, self.head(Op::Insert, sequence), &row, unchanged.then_some(LEFT_OUT[table]));
                    self.tables[table].insert(to, row);
                }
                Event::Truncate { table } => {
                    self.tables[table].clear();
                    steps.extend(open[table].take().map(Step::Rows));
                    steps.push(Step::Truncate {
                        table: schemas[table].table.clone(),
                        head: self.head(Op::Delete, sequence),
                    });
                }
                Event::Commit { clock_back_days } => {
                    self.lsn += 1;
                    self.clock_back_days = u64::from(clock_back_days);
                    sequence = 0;
                }
            }
        }
        steps.extend(open.into_iter().flatten().map(Step::Rows));
        steps
    }

    pub(crate) fn end(&self) -> millrace_contract::BatchEnd {
        end(self.lsn)
    }

    /// A step that cannot be stored.
    pub(crate) fn misfit(&self) -> Step {
        let mut row = payment(1, 1, "1.00", "2024-01-06 00:00:00+00");
        row[2] = Some("NaN".into());
        super::rows(&payments(), &[(self.head(Op::Insert, 9_999), row)])
    }

    /// Staging's rows as texts, from the map.
    pub(crate) fn expected(&self) -> Vec<Vec<String>> {
        self.tables
            .iter()
            .map(|rows| {
                rows.values()
                    .map(|v| v.iter().map(|t| t.clone().unwrap_or_else(|| "null".into())).collect::<Vec<_>>().join("|"))
                    .collect()
            })
            .collect()
    }
}

fn key_only(schema: &Arc<TableSchema>, id: u32) -> Vec<Text> {
    let mut values = vec![None; schema.columns.len()];
    values[0] = Some(id.to_string());
    values
}

/// Staging's rows as texts, from the file.
pub(crate) fn staged(engine: &millrace_warehouse::Engine) -> Vec<Vec<String>> {
    [customers(), loans(), payments()]
        .iter()
        .map(|schema| {
            let columns: Vec<String> =
                schema.columns.iter().map(|c| format!("coalesce(cast({} as varchar), 'null')", c.name)).collect();
            super::query(
                engine,
                &format!(
                    "select {} from staging.{} order by {}",
                    columns.join(" || '|' || "),
                    schema.table.name,
                    schema.columns[0].name
                ),
            )
        })
        .collect()
}

/// Every row of every table that models made, surrogate keys included.
pub(crate) fn star(engine: &millrace_warehouse::Engine) -> Vec<Vec<String>> {
    ["dim_customer", "dim_loan", "fact_payments", "fact_loans"]
        .map(|table| {
            super::query(engine, &format!("select cast(t as varchar) from warehouse.{table} as t order by all"))
        })
        .to_vec()
}
