//! From decoded messages to the steps of a batch. Pure: no waiting, no I/O.
//!
//! Rows of one table are gathered in columns and leave as one step when they have grown enough, so
//! the order of steps is the source's for each table, but not between tables.

use std::{collections::BTreeSet, sync::Arc};

use millrace_base::{Lsn, Micros};
use millrace_contract::{BatchEnd, Cell, Op, RowHead, Rows, Step, TableName, TableSchema};
use millrace_wire::pgoutput::{Message, OldTuple, Tuple, Value};

use crate::error::CaptureError;

/// A relation of the stream.
#[derive(Debug)]
struct Relation {
    oid: u32,
    schema: Arc<TableSchema>,
    /// Position of each column in the key, for the hot path.
    key: Arc<[bool]>,
    /// The sink has been told the schema.
    announced: bool,
    /// Quarantined, or not copied yet: its changes are left out.
    skipped: bool,
    rows: Rows,
}

/// The transaction whose changes are being taken.
#[derive(Debug, Clone, Copy)]
struct Transaction {
    commit_lsn: Lsn,
    commit_time: Micros,
    sequence: u64,
}

/// Gathers a batch.
#[derive(Debug)]
pub(crate) struct Assembler {
    wanted: BTreeSet<TableName>,
    skipped: BTreeSet<TableName>,
    relations: Vec<Relation>,
    last: usize,
    transaction: Option<Transaction>,
    step_bytes: usize,
    ready: Vec<Step>,
    handed_over_bytes: usize,
    changes: u64,
    transactions: u64,
    first_commit: Option<Micros>,
    end: Lsn,
    end_time: Micros,
}

/// A closed batch: its last steps come first.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) steps: Vec<Step>,
    pub(crate) end: BatchEnd,
    pub(crate) changes: u64,
}

impl Assembler {
    pub(crate) fn new(wanted: BTreeSet<TableName>, skipped: BTreeSet<TableName>, step_bytes: usize) -> Self {
        Self {
            wanted,
            skipped,
            relations: Vec::new(),
            last: 0,
            transaction: None,
            step_bytes,
            ready: Vec::new(),
            handed_over_bytes: 0,
            changes: 0,
            transactions: 0,
            first_commit: None,
            end: Lsn::INVALID,
            end_time: Micros::default(),
        }
    }

    /// Whether changes of the table matter at all.
    pub(crate) fn wants(&self, table: &TableName) -> bool {
        self.wanted.contains(table)
    }

    /// The columns of a relation as they are known until now.
    pub(crate) fn schema_of(&self, table: &TableName) -> Option<&Arc<TableSchema>> {
        self.relations.iter().map(|r| &r.schema).find(|s| s.table == *table)
    }

    /// The relation's columns from here on.
    pub(crate) fn relation(&mut self, schema: Arc<TableSchema>) {
        let skipped = self.skipped.contains(&schema.table);
        let oid = schema.oid;
        let key = schema.columns.iter().map(|c| c.key).collect();
        let fresh =
            Relation { oid, key, announced: false, skipped, rows: Rows::new(schema.clone()), schema: schema.clone() };
        // a table that was dropped and made again has another oid
        let same = |r: &Relation| r.oid == oid || r.schema.table == schema.table;
        match self.relations.iter().position(same) {
            Some(at) if *self.relations[at].schema == *schema => {}
            Some(at) => {
                self.gather(at);
                self.relations[at] = fresh;
            }
            None => self.relations.push(fresh),
        }
    }

    /// The name that a relation is known by; `None` if it was never wanted.
    pub(crate) fn name_of(&self, oid: u32) -> Option<&TableName> {
        self.relations.iter().find(|r| r.oid == oid).map(|r| &r.schema.table)
    }

    pub(crate) fn skips(&self, table: &TableName) -> bool {
        self.skipped.contains(table)
    }

    /// Changes of the table are taken again.
    pub(crate) fn unskip(&mut self, table: &TableName) {
        self.skipped.remove(table);
        for relation in self.relations.iter_mut().filter(|r| r.schema.table == *table) {
            relation.skipped = false;
        }
    }

    pub(crate) fn begin(&mut self, commit_lsn: Lsn, commit_time: Micros) {
        self.transaction = Some(Transaction { commit_lsn, commit_time, sequence: 0 });
    }

    pub(crate) fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    pub(crate) fn commit(&mut self, end_lsn: Lsn) {
        if let Some(transaction) = self.transaction.take() {
            self.end = end_lsn;
            self.end_time = transaction.commit_time;
            if transaction.sequence > 0 {
                self.transactions += 1;
            }
        }
    }

    /// Takes one change of the current transaction.
    pub(crate) fn change(&mut self, message: &Message<'_>) -> Result<(), CaptureError> {
        match message {
            Message::Insert { relation, new } => {
                let Some(at) = self.find(*relation)? else { return Ok(()) };
                self.push(at, Op::Insert, new.len(), new.values())
            }
            Message::Update { relation, old, new } => {
                let Some(at) = self.find(*relation)? else { return Ok(()) };
                match old {
                    None => self.push(at, Op::Update, new.len(), new.values()),
                    Some(old) => self.update(at, *old, *new),
                }
            }
            Message::Delete { relation, old } => {
                let Some(at) = self.find(*relation)? else { return Ok(()) };
                self.delete(at, old.tuple())
            }
            Message::Truncate { relations, .. } => {
                for oid in relations.iter() {
                    if let Some(at) = self.find(oid)? {
                        self.truncate(at)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The relation's place; `None` if its changes are left out.
    #[inline]
    fn find(&mut self, oid: u32) -> Result<Option<usize>, CaptureError> {
        if self.relations.get(self.last).is_none_or(|r| r.oid != oid) {
            match self.relations.iter().position(|r| r.oid == oid) {
                Some(at) => self.last = at,
                // the reader registers every relation that is wanted, and only those
                None => return Ok(None),
            }
        }
        Ok((!self.relations[self.last].skipped).then_some(self.last))
    }

    #[inline]
    fn push<'a>(
        &mut self,
        at: usize,
        op: Op,
        len: usize,
        values: impl Iterator<Item = Value<'a>>,
    ) -> Result<(), CaptureError> {
        let head = self.head(op)?;
        let relation = &mut self.relations[at];
        if len != relation.key.len() {
            return Err(CaptureError::Stream(format!("a row of {} with {len} values", relation.schema.table)));
        }
        if !relation.announced {
            relation.announced = true;
            self.ready.push(Step::Schema(relation.schema.clone()));
        }
        let mut binary = false;
        let fits = relation.rows.push(
            head,
            values.map(|value| match value {
                Value::Text(text) => Cell::Text(text),
                Value::Null => Cell::Null,
                Value::Unchanged => Cell::Unchanged,
                Value::Binary(_) => {
                    binary = true;
                    Cell::Null
                }
            }),
        );
        if !fits || binary {
            return Err(CaptureError::Stream(format!("a row of {} of another shape", relation.schema.table)));
        }
        self.changes += 1;
        if relation.rows.size_bytes() >= self.step_bytes {
            self.gather(at);
        }
        Ok(())
    }

    /// An update whose old key, or old row, came along.
    fn update(&mut self, at: usize, old: OldTuple<'_>, new: Tuple<'_>) -> Result<(), CaptureError> {
        let old = old.tuple();
        let pairs = || old.values().zip(new.values());
        let key_changed = pairs()
            .zip(&*self.relations[at].key)
            .any(|((old, new), key)| *key && new != Value::Unchanged && new != old);
        // what the new row leaves out, the old one may have
        let merged = pairs().map(|(old, new)| match (new, old) {
            (Value::Unchanged, Value::Text(text)) => Value::Text(text),
            _ => new,
        });
        let len = if old.len() == new.len() { new.len() } else { usize::MAX };
        if key_changed {
            self.delete(at, old)?;
            self.push(at, Op::Insert, len, merged)
        } else {
            self.push(at, Op::Update, len, merged)
        }
    }

    fn delete(&mut self, at: usize, old: Tuple<'_>) -> Result<(), CaptureError> {
        let key = self.relations[at].key.clone();
        let only_key = old.values().zip(&*key).map(|(value, key)| if *key { value } else { Value::Null });
        self.push(at, Op::Delete, old.len(), only_key)
    }

    fn truncate(&mut self, at: usize) -> Result<(), CaptureError> {
        let head = self.head(Op::Delete)?;
        self.gather(at);
        let relation = &mut self.relations[at];
        if !relation.announced {
            relation.announced = true;
            self.ready.push(Step::Schema(relation.schema.clone()));
        }
        self.ready.push(Step::Truncate { table: relation.schema.table.clone(), head });
        self.changes += 1;
        Ok(())
    }

    fn head(&mut self, op: Op) -> Result<RowHead, CaptureError> {
        let transaction = self
            .transaction
            .as_mut()
            .ok_or_else(|| CaptureError::Stream("a change outside of a transaction".to_owned()))?;
        let sequence = transaction.sequence;
        transaction.sequence += 1;
        self.first_commit.get_or_insert(transaction.commit_time);
        Ok(RowHead { op, commit_lsn: transaction.commit_lsn, commit_time: transaction.commit_time, sequence })
    }

    /// Moves a relation's rows to the steps that are ready.
    fn gather(&mut self, at: usize) {
        let relation = &mut self.relations[at];
        if !relation.rows.is_empty() {
            let rows = std::mem::replace(&mut relation.rows, Rows::new(relation.schema.clone()));
            self.handed_over_bytes += rows.size_bytes();
            self.ready.push(Step::Rows(rows));
        }
    }

    /// Steps that are large enough to leave.
    pub(crate) fn take_ready(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.ready)
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Commit time of the open batch's first transaction with a change; `None` without one.
    pub(crate) fn first_commit(&self) -> Option<Micros> {
        self.first_commit
    }

    /// What the open batch holds or has handed over.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.handed_over_bytes + self.relations.iter().map(|r| r.rows.size_bytes()).sum::<usize>()
    }

    /// Ends the batch, at an end of a transaction. `None` if there is nothing in it.
    pub(crate) fn close(&mut self) -> Option<Closed> {
        self.first_commit.take()?;
        for at in 0..self.relations.len() {
            self.gather(at);
        }
        self.handed_over_bytes = 0;
        let end = BatchEnd {
            watermark: self.end,
            commit_time: self.end_time,
            transactions: std::mem::take(&mut self.transactions),
        };
        Some(Closed { steps: self.take_ready(), end, changes: std::mem::take(&mut self.changes) })
    }
}
