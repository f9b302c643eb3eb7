//! The sink of these tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use millrace_base::Lsn;
use millrace_contract::{
    Applied, BatchEnd, Cell, Op, RowHead, RunKind, Sink, SinkError, Step, TableName, TableSchema, sink::Resume,
};
use tokio::sync::watch;

pub(crate) type Text = Option<Vec<u8>>;
pub(crate) type Key = Vec<Text>;
/// A table's rows by key; each with its columns' texts by name.
pub(crate) type Table = BTreeMap<Key, BTreeMap<String, Text>>;

/// What is durable.
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) resume: Resume,
    pub(crate) tables: BTreeMap<TableName, Table>,
    pub(crate) schemas: BTreeMap<TableName, Vec<Arc<TableSchema>>>,
    /// Heads of all changes (not of copies), in the order applied.
    pub(crate) heads: BTreeMap<TableName, Vec<RowHead>>,
    pub(crate) batches: Vec<(RunKind, BatchEnd)>,
}

#[derive(Debug, Default)]
struct Shared {
    state: State,
    pins: BTreeMap<String, State>,
    /// A text that no table can store.
    poison: Option<Vec<u8>>,
    /// How many commits fail from now on.
    failing_commits: usize,
    steps_bytes_max: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    shared: Arc<Mutex<Shared>>,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(crate) fn watermark(&self) -> Lsn {
        self.lock().state.resume.watermark
    }

    pub(crate) fn table(&self, table: &TableName) -> Table {
        self.lock().state.tables.get(table).cloned().unwrap_or_default()
    }

    pub(crate) fn pinned(&self, name: &str) -> State {
        self.lock().pins[name].clone()
    }

    pub(crate) fn poison(&self, text: Option<&str>) {
        self.lock().poison = text.map(|t| t.as_bytes().to_vec());
    }

    pub(crate) fn fail_commits(&self, count: usize) {
        self.lock().failing_commits = count;
    }

    pub(crate) fn step_bytes_max(&self) -> usize {
        self.lock().steps_bytes_max
    }

    pub(crate) fn set_system_id(&self, system_id: u64) {
        self.lock().state.resume.system_id = Some(system_id);
    }

    pub(crate) fn set_watermark(&self, watermark: Lsn) {
        self.lock().state.resume.watermark = watermark;
    }

    /// A sink as a new process would open it: what was not committed is gone.
    pub(crate) fn sink(&self, gate: watch::Receiver<bool>) -> TestSink {
        TestSink { store: self.clone(), open: None, gate }
    }
}

#[derive(Debug)]
struct Open {
    kind: RunKind,
    system_id: u64,
    state: State,
    deleted: BTreeMap<TableName, BTreeMap<String, Text>>,
}

#[derive(Debug)]
pub(crate) struct TestSink {
    store: Store,
    open: Option<Open>,
    /// Commits wait while this is false.
    gate: watch::Receiver<bool>,
}

fn fatal(reason: String) -> SinkError {
    SinkError::Fatal { reason, hint: String::new() }
}

impl Open {
    fn row(&mut self, schema: &TableSchema, head: RowHead, cells: &[Cell<'_>]) -> Result<(), SinkError> {
        let text = |cell: &Cell<'_>| match cell {
            Cell::Text(text) => Some(text.to_vec()),
            Cell::Null | Cell::Unchanged => None,
        };
        let key: Key = schema.key().map(|at| text(&cells[at])).collect();
        let name = &schema.table;
        let table = self.state.tables.entry(name.clone()).or_default();
        let bad = |what: &str| {
            let key: Vec<_> = key.iter().map(|k| k.as_deref().map(String::from_utf8_lossy)).collect();
            fatal(format!("{name}: {:?} {what} {key:?} at {} {}", head.op, head.commit_lsn, head.sequence))
        };
        if head.op == Op::Delete {
            let others = schema.columns.iter().zip(cells).filter(|(c, _)| !c.key).all(|(_, cell)| *cell == Cell::Null);
            if !others {
                return Err(bad("brings more than the key of"));
            }
            let old = table.remove(&key).ok_or_else(|| bad("of absent"))?;
            self.deleted.insert(name.clone(), old);
            return Ok(());
        }
        let before = match head.op {
            Op::Update => Some(table.remove(&key).ok_or_else(|| bad("of absent"))?),
            _ if table.contains_key(&key) => return Err(bad("of present")),
            // a change of the key: what is unchanged is the deleted row's
            Op::Insert => self.deleted.get(name).cloned(),
            _ => None,
        };
        let mut row = BTreeMap::new();
        for (column, cell) in schema.columns.iter().zip(cells) {
            let value = match cell {
                Cell::Unchanged => {
                    let before = before.as_ref().and_then(|b| b.get(&column.name));
                    before.cloned().ok_or_else(|| bad("leaves out what was never there of"))?
                }
                other => text(other),
            };
            row.insert(column.name.clone(), value);
        }
        table.insert(key, row);
        Ok(())
    }

    fn step(&mut self, step: Step, poison: Option<&[u8]>) -> Result<(), SinkError> {
        match step {
            Step::Schema(schema) => {
                self.state.tables.entry(schema.table.clone()).or_default();
                let known = self.state.schemas.entry(schema.table.clone()).or_default();
                if known.last() != Some(&schema) {
                    let names: Vec<_> = schema.columns.iter().map(|c| c.name.clone()).collect();
                    for row in self.state.tables.entry(schema.table.clone()).or_default().values_mut() {
                        row.retain(|name, _| names.contains(name));
                        for name in &names {
                            row.entry(name.clone()).or_insert(None);
                        }
                    }
                    known.push(schema);
                }
            }
            Step::Rows(rows) => {
                let schema = rows.schema().clone();
                if self.state.schemas.get(&schema.table).and_then(|s| s.last()) != Some(&schema) {
                    return Err(fatal(format!("rows of {} before their schema", schema.table)));
                }
                for (at, head) in rows.heads().iter().enumerate() {
                    let cells: Vec<_> = (0..schema.columns.len()).map(|c| rows.column(c).unwrap().cell(at)).collect();
                    if poison.is_some_and(|p| cells.contains(&Cell::Text(p))) {
                        return Err(SinkError::Table { table: schema.table.clone(), reason: "poison".to_owned() });
                    }
                    self.head(&schema.table, *head)?;
                    self.row(&schema, *head, &cells)?;
                }
            }
            Step::Truncate { table, head } => {
                self.head(&table, head)?;
                self.state.tables.entry(table).or_default().clear();
            }
        }
        Ok(())
    }

    /// Changes of a table come in order, each once.
    fn head(&mut self, table: &TableName, head: RowHead) -> Result<(), SinkError> {
        if head.op == Op::Copy {
            return Ok(());
        }
        let heads = self.state.heads.entry(table.clone()).or_default();
        if heads.last().is_some_and(|last| (last.commit_lsn, last.sequence) >= (head.commit_lsn, head.sequence)) {
            return Err(fatal(format!("{table}: a change at {} {} again", head.commit_lsn, head.sequence)));
        }
        if head.commit_lsn < self.state.resume.watermark {
            return Err(fatal(format!("{table}: a change at {} from before the watermark", head.commit_lsn)));
        }
        heads.push(head);
        Ok(())
    }
}

impl Sink for TestSink {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        let shared = self.store.lock();
        let state = &shared.state;
        let mut resume = state.resume.clone();
        let last = |table| state.schemas.get(table).and_then(|known: &Vec<_>| known.last()).cloned();
        resume.schemas = resume.tables.iter().filter_map(last).collect();
        Ok(resume)
    }

    async fn begin(&mut self, kind: RunKind, system_id: u64) -> Result<(), SinkError> {
        if self.open.is_some() {
            return Err(fatal("begin within a batch".to_owned()));
        }
        let mut state = self.store.state();
        match &kind {
            RunKind::InitialCopy => state = State::default(),
            RunKind::Changes => {}
            RunKind::Resync(table) => {
                state.tables.remove(table);
            }
        }
        self.open = Some(Open { kind, system_id, state, deleted: BTreeMap::new() });
        Ok(())
    }

    async fn append(&mut self, step: Step) -> Result<(), SinkError> {
        let poison = {
            let mut shared = self.store.lock();
            if let Step::Rows(rows) = &step {
                shared.steps_bytes_max = shared.steps_bytes_max.max(rows.size_bytes());
            }
            shared.poison.clone()
        };
        let open = self.open.as_mut().ok_or_else(|| fatal("append without begin".to_owned()))?;
        open.step(step, poison.as_deref())
    }

    async fn commit(&mut self, end: BatchEnd) -> Result<Applied, SinkError> {
        let open = self.open.take().ok_or_else(|| fatal("commit without begin".to_owned()))?;
        self.gate.wait_for(|gate| *gate).await.map_err(|e| fatal(e.to_string()))?;
        let mut shared = self.store.lock();
        if shared.failing_commits > 0 {
            shared.failing_commits -= 1;
            return Err(SinkError::Retry("as the test wanted".to_owned()));
        }
        let mut state = open.state;
        if end.watermark < state.resume.watermark {
            return Err(fatal("the watermark goes back".to_owned()));
        }
        state.resume.watermark = end.watermark;
        state.resume.system_id = Some(open.system_id);
        if let RunKind::Resync(table) = &open.kind {
            state.resume.quarantined.remove(table);
        }
        let mut tables: BTreeSet<TableName> = state.resume.tables.iter().cloned().collect();
        if open.kind != RunKind::Changes {
            tables.extend(state.schemas.keys().cloned());
        }
        state.resume.tables = tables.into_iter().collect();
        state.batches.push((open.kind, end));
        shared.state = state;
        Ok(Applied::default())
    }

    async fn rollback(&mut self) -> Result<(), SinkError> {
        self.open.take().map(drop).ok_or_else(|| fatal("rollback without begin".to_owned()))
    }

    async fn advance(&mut self, end: BatchEnd) -> Result<(), SinkError> {
        if self.open.is_some() {
            return Err(fatal("advance within a batch".to_owned()));
        }
        self.store.lock().state.resume.watermark = end.watermark;
        Ok(())
    }

    async fn quarantine(&mut self, table: TableName, reason: String) -> Result<(), SinkError> {
        if self.open.is_some() {
            return Err(fatal("quarantine within a batch".to_owned()));
        }
        self.store.lock().state.resume.quarantined.insert(table, reason);
        Ok(())
    }

    async fn pin(&mut self, name: &str) -> Result<(), SinkError> {
        if self.open.is_some() {
            return Err(fatal("pin within a batch".to_owned()));
        }
        let mut shared = self.store.lock();
        let state = shared.state.clone();
        shared.pins.insert(name.to_owned(), state);
        Ok(())
    }
}
