//! Copies of whole tables in one snapshot, over several connections at once.
//!
//! Work is cut into ranges of pages (`ctid`), so that one large table keeps every connection busy.
//! A coordinating transaction holds a lock on the tables from before the first row is read, and
//! sees that none was rewritten since the snapshot: what an older snapshot finds in a rewritten
//! table is nothing at all.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use millrace_base::{Ident, Lsn, Micros, Tasks, ident::Literal};
use millrace_contract::{Cell, Op, RowHead, Rows, Step, TableName, TableSchema};
use millrace_pg::{ConnectParams, Connection, connect, replication::RawConnection};
use millrace_wire::copy_text::{Field, plain_fields, unescape_row};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{error::CaptureError, options::CaptureOptions, progress::Progress, source};

const CONNECT: Duration = Duration::from_secs(15);
/// How long the locks may take.
const LOCK: Duration = Duration::from_secs(60);
/// How long a copy may bring nothing.
const SILENCE: Duration = Duration::from_secs(120);
/// 32 MB: enough to be worth a statement, small enough to spread.
const RANGE_PAGES: i64 = 4096;
/// Sequence numbers are taken from the common counter this many at a time.
const SEQUENCE_BLOCK: u64 = 4096;

/// A snapshot to copy from, and what its rows are stamped with.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) lsn: Lsn,
    pub(crate) taken_at: Micros,
}

/// A running copy.
#[derive(Debug)]
pub(crate) struct Copy {
    /// Every table's columns: to be told to the sink before the first rows.
    pub(crate) schemas: Vec<Arc<TableSchema>>,
    pub(crate) steps: mpsc::Receiver<Result<Step, CaptureError>>,
    tasks: Tasks,
    _coordinator: Connection,
}

impl Copy {
    /// After the last step: whether all went well.
    pub(crate) async fn finish(mut self) -> Result<(), CaptureError> {
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

/// A range of pages of one table, or leaf partition.
#[derive(Debug)]
struct Job {
    schema: Arc<TableSchema>,
    sql: String,
    left: Arc<AtomicUsize>,
}

/// Shared by the connections of one copy.
#[derive(Debug)]
struct Work {
    params: ConnectParams,
    snapshot: Snapshot,
    step_bytes: usize,
    jobs: Mutex<VecDeque<Job>>,
    sequence: AtomicU64,
    progress: Arc<Progress>,
}

impl Work {
    fn next_job(&self) -> Option<Job> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Begins to copy `tables` as `snapshot` shows them.
pub(crate) async fn start(
    options: &CaptureOptions,
    tables: &[TableName],
    snapshot: Snapshot,
    progress: Arc<Progress>,
) -> Result<Copy, CaptureError> {
    let coordinator = connect(&options.source, CONNECT).await?;
    let opening =
        format!("SET idle_in_transaction_session_timeout = 0; {}; {}", begin_in(&snapshot.name), lock(tables),);
    tokio::time::timeout(LOCK, coordinator.batch_execute(&opening))
        .await
        .map_err(|_| millrace_pg::PgError::Timeout { address: options.source.address(), deadline: LOCK })??;

    let described = source::describe(&coordinator, tables).await?;
    let (mut schemas, mut jobs) = (Vec::new(), VecDeque::new());
    for table in described.values() {
        let schema = table.schema(&coordinator).await?;
        jobs.extend(plan(&coordinator, &schema).await?);
        schemas.push(schema);
    }

    let connections = options.copy_connections.clamp(1, jobs.len().max(1));
    let work = Arc::new(Work {
        params: options.source.clone(),
        snapshot,
        step_bytes: options.step_bytes,
        jobs: Mutex::new(jobs),
        sequence: AtomicU64::new(0),
        progress,
    });
    let (sender, steps) = mpsc::channel(connections * 2);
    let mut tasks = Tasks::new(CancellationToken::new());
    for _ in 0..connections {
        let (work, sender) = (work.clone(), sender.clone());
        tasks.spawn("copy", async move {
            if let Err(error) = worker(&work, &sender).await {
                // nobody listens when the copy has been given up
                sender.send(Err(error)).await.ok();
            }
            Ok::<_, CaptureError>(())
        });
    }
    Ok(Copy { schemas, steps, tasks, _coordinator: coordinator })
}

fn begin_in(snapshot: &str) -> String {
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", Literal(snapshot))
}

fn lock(tables: &[TableName]) -> String {
    let names: Vec<_> = tables.iter().map(TableName::to_sql).collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))
}

/// Cuts a table into jobs.
async fn plan(coordinator: &Connection, schema: &Arc<TableSchema>) -> Result<Vec<Job>, CaptureError> {
    let columns: Vec<_> = schema.columns.iter().map(|c| Ident(&c.name).to_string()).collect();
    let columns = columns.join(", ");
    let mut statements = Vec::new();
    for row in coordinator.query(include_str!("../sql/storage.sql"), &[&schema.oid]).await? {
        let leaf = TableName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"));
        if row.get("moved") {
            return Err(CaptureError::Moved { table: schema.table.clone() });
        }
        let (leaf, pages) = (leaf.to_sql(), row.get::<_, i64>("pages"));
        if pages <= RANGE_PAGES {
            // the plain form spares the server its executor
            statements.push(format!("COPY {leaf} ({columns}) TO STDOUT"));
            continue;
        }
        for from in (0..pages).step_by(usize::try_from(RANGE_PAGES).unwrap_or(usize::MAX)) {
            let to = from + RANGE_PAGES;
            // the table may have grown since: the last range has no end
            let end = if to < pages { format!(" AND ctid < '({to},0)'") } else { String::new() };
            statements
                .push(format!("COPY (SELECT {columns} FROM ONLY {leaf} WHERE ctid >= '({from},0)'{end}) TO STDOUT"));
        }
    }
    let left = Arc::new(AtomicUsize::new(statements.len()));
    Ok(statements.into_iter().map(|sql| Job { schema: schema.clone(), sql, left: left.clone() }).collect())
}

/// One connection: takes jobs until none is left.
async fn worker(work: &Work, steps: &mpsc::Sender<Result<Step, CaptureError>>) -> Result<(), CaptureError> {
    let mut connection = RawConnection::connect(&work.params, CONNECT).await?;
    connection.query(&begin_in(&work.snapshot.name), CONNECT).await?;
    let mut stamp = Stamp { work, next: 0, end: 0 };
    let mut fields = Vec::new();
    while let Some(job) = work.next_job() {
        connection.copy_out(&job.sql, SILENCE).await.map_err(|error| match error.sqlstate() {
            // a column or partition that the snapshot shows and that is gone by now
            Some("42703" | "42P01") => CaptureError::Moved { table: job.schema.table.clone() },
            _ => error.into(),
        })?;
        let mut rows = Rows::new(job.schema.clone());
        let mut told = 0;
        while let Some(mut piece) = connection.copy_next(SILENCE).await? {
            for row in piece.split_mut(|byte| *byte == b'\n').filter(|row| !row.is_empty()) {
                push_row(&mut rows, stamp.head(), row, &mut fields)?;
            }
            if rows.size_bytes() >= work.step_bytes {
                let full = std::mem::replace(&mut rows, Rows::new(job.schema.clone()));
                work.progress.copied(u64::try_from(full.len()).unwrap_or(u64::MAX), 0);
                if steps.send(Ok(Step::Rows(full))).await.is_err() {
                    return Ok(());
                }
            }
            told += 1;
            // rows come faster than the runtime gets a turn
            if told % 4096 == 0 {
                tokio::task::yield_now().await;
            }
        }
        work.progress.copied(u64::try_from(rows.len()).unwrap_or(u64::MAX), 0);
        if !rows.is_empty() && steps.send(Ok(Step::Rows(rows))).await.is_err() {
            return Ok(());
        }
        if job.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            work.progress.copied(0, 1);
        }
    }
    Ok(())
}

/// Gives rows their heads.
struct Stamp<'a> {
    work: &'a Work,
    next: u64,
    end: u64,
}

impl Stamp<'_> {
    #[inline]
    fn head(&mut self) -> RowHead {
        if self.next == self.end {
            self.next = self.work.sequence.fetch_add(SEQUENCE_BLOCK, Ordering::Relaxed);
            self.end = self.next + SEQUENCE_BLOCK;
        }
        let sequence = self.next;
        self.next += 1;
        let Snapshot { lsn, taken_at, .. } = self.work.snapshot;
        RowHead { op: Op::Copy, commit_lsn: lsn, commit_time: taken_at, sequence }
    }
}

/// Appends one row in COPY's text format, its newline taken off.
#[inline]
fn push_row(rows: &mut Rows, head: RowHead, row: &mut [u8], fields: &mut Vec<Field>) -> Result<(), CaptureError> {
    let wanted = rows.schema().columns.len();
    let (mut found, fits) = (0, memchr::memchr(b'\\', row).is_none());
    let fits = if fits {
        rows.push(head, plain_fields(row).inspect(|_| found += 1).map(Cell::Text))
    } else {
        unescape_row(row, fields)?;
        found = fields.len();
        let row = &*row;
        rows.push(head, fields.iter().map(|field| field.of(row).map_or(Cell::Null, Cell::Text)))
    };
    if fits && found == wanted {
        return Ok(());
    }
    Err(CaptureError::Stream(format!("a row of {} with {found} values", rows.schema().table)))
}
