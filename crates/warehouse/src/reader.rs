//! Answers readers ([`Reader`]) from the engine, in PostgreSQL's dialect.
//!
//! Invariants: a statement is parsed and found to be a query before DuckDB sees it (`dialect`), and runs
//! in a read-only transaction; at most [`ReaderOptions::concurrent`] statements run at once, the others
//! queue until their deadline; dropping a result interrupts its statement.
//! Non-goals: sessions, transactions over several statements (a pinned state serves for those).

mod catalog;
mod dialect;
mod error;
mod run;
mod value;
mod watch;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use duckdb::Connection;
use futures::future::BoxFuture;
use millrace_base::Tasks;
use millrace_contract::{
    Query, QueryError, Reader, RowStream,
    query::{Description, Freshness, ResultColumn, ValueType},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    run::Job,
    watch::{EndOnDrop, Running, Watched},
};
use crate::engine::{Engine, Session, lock};

/// Chunks of a result that wait for a slow reader; one more is kept for an error.
const CHUNKS_WAITING: usize = 4;

/// Time for what is not a statement of the user: describing, freshness.
const SHORT: Duration = Duration::from_secs(30);

/// How a reader uses the engine.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Statements that run at once; each has a connection and a thread.
    pub concurrent: usize,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self { concurrent: 8 }
    }
}

/// Reads the warehouse. Dropping it ends its statements.
#[derive(Debug)]
pub struct DuckReader {
    engine: Arc<Engine>,
    /// DuckDB's name for the open file.
    catalog: String,
    concurrent: usize,
    permits: Arc<Semaphore>,
    watcher: mpsc::Sender<Watched>,
    /// The watch; running statements hold it too, so that it outlives them.
    tasks: Arc<Mutex<Tasks>>,
    token: CancellationToken,
}

impl DuckReader {
    /// A reader of `engine`; must be called within a tokio runtime. It ends when `token` is cancelled.
    ///
    /// # Errors
    /// If the engine refuses a connection or the settings that make it answer as PostgreSQL does.
    pub fn new(
        engine: Arc<Engine>,
        options: &ReaderOptions,
        token: &CancellationToken,
    ) -> Result<Arc<Self>, QueryError> {
        let concurrent = options.concurrent.max(1);
        let (watcher, watched) = mpsc::channel(concurrent);
        let mut tasks = Tasks::new(token.child_token());
        let child = tasks.token().clone();
        tasks.spawn("warehouse-reader", async move {
            watch::watch(watched, child).await;
            Ok::<_, std::convert::Infallible>(())
        });
        let first = connect(&engine)?;
        let catalog = catalog::name(&first).map_err(|e| error::translate(&e, None))?;
        let reader = Self {
            engine,
            catalog,
            concurrent,
            permits: Arc::new(Semaphore::new(concurrent)),
            watcher,
            token: tasks.token().clone(),
            tasks: Arc::new(Mutex::new(tasks)),
        };
        reader.engine.give_back(first);
        Ok(Arc::new(reader))
    }

    /// Statements that run now; those that wait for their turn do not count.
    #[must_use]
    pub fn running(&self) -> usize {
        self.concurrent.saturating_sub(self.permits.available_permits())
    }

    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, QueryError> {
        match tokio::time::timeout_at(deadline, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(error::error("57P01", "the warehouse shuts down")),
            Err(_) => Err(error::with_hint(
                "57014",
                "canceling statement due to statement timeout: it waited for other statements to end",
                "try again, or raise [warehouse] concurrent statements",
            )),
        }
    }

    async fn start(&self, query: Query) -> Result<RowStream, QueryError> {
        let now = Instant::now();
        let deadline = now.checked_add(query.deadline).unwrap_or(now + Duration::from_secs(86_400 * 365));
        let translated = dialect::translate(&query.sql, &self.catalog)?;
        let params = translated.parameters(query.params);
        let permit = self.permit(deadline).await?;
        let (head, headed) = oneshot::channel();
        let (sender, rows) = mpsc::channel(CHUNKS_WAITING + 1);
        let running = Arc::new(Running::default());
        let watched = Watched { running: running.clone(), reader: sender.clone(), deadline };
        let job = Job {
            sql: translated.sql,
            params,
            deadline,
            confirmed_at: self.engine.confirmed_at(),
            head,
            rows: sender,
            running,
            runtime: Handle::current(),
        };
        if self.token.is_cancelled() {
            return Err(error::error("57P01", "the warehouse shuts down"));
        }
        let (engine, tasks) = (self.engine.clone(), self.tasks.clone());
        // from here to the answer nothing waits: a caller that goes away leaves a watched statement
        let slot = self.watcher.reserve().await.map_err(|_| error::error("57P01", "the warehouse shuts down"))?;
        slot.send(watched);
        match query.pinned {
            Some(name) => {
                let Some(connection) = engine.pinned(&name) else {
                    job.running.end();
                    return Err(error::error("3B001", format!("the pinned state \"{name}\" does not exist")));
                };
                drop(tokio::task::spawn_blocking(move || {
                    let _held = (permit, tasks);
                    let connection = lock(&connection);
                    let _end = EndOnDrop(job.running.clone());
                    job.running.begin(connection.interrupt_handle());
                    run::run(&connection, job);
                }));
            }
            None => {
                drop(tokio::task::spawn_blocking(move || {
                    let _held = (permit, tasks);
                    let running = job.running.clone();
                    let _end = EndOnDrop(running.clone());
                    let connection = match engine.take_idle().map_or_else(|| connect(&engine), Ok) {
                        Ok(connection) => connection,
                        Err(error) => return drop(job.head.send(Err(error))),
                    };
                    running.begin(connection.interrupt_handle());
                    let good = run::in_own_transaction(&connection, job);
                    running.end();
                    if good {
                        engine.give_back(connection);
                    }
                }));
            }
        }
        let answered = headed.await.map_err(|_| error::error("XX000", "the statement's thread has ended"))?;
        let (columns, freshness) = answered?;
        Ok(RowStream { columns, freshness, rows })
    }

    /// Runs `work` on a prepared connection, on a blocking thread.
    async fn short<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let permit = self.permit(Instant::now() + SHORT).await?;
        let engine = self.engine.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let connection = engine.take_idle().map_or_else(|| connect(&engine), Ok)?;
            let result = work(&connection);
            engine.give_back(connection);
            result
        });
        done.await.map_err(|_| error::error("XX000", "the statement's thread has ended"))?
    }

    async fn described(&self, sql: &str, declared: Vec<Option<ValueType>>) -> Result<Description, QueryError> {
        let translated = dialect::translate(sql, &self.catalog)?;
        self.short(move |connection| dialect::params::describe(connection, &translated, &declared)).await
    }
}

fn connect(engine: &Engine) -> Result<Session, QueryError> {
    let connection = engine.connect().map_err(|e| error::error("53000", e.to_string()))?;
    catalog::prepare(&connection).map_err(|e| error::translate(&e, None))?;
    Ok(connection)
}

impl Drop for DuckReader {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl Reader for DuckReader {
    fn query(&self, query: Query) -> BoxFuture<'_, Result<RowStream, QueryError>> {
        Box::pin(self.start(query))
    }

    fn describe(&self, sql: &str) -> BoxFuture<'_, Result<(Vec<ResultColumn>, usize), QueryError>> {
        let sql = sql.to_owned();
        Box::pin(async move {
            let description = self.described(&sql, Vec::new()).await?;
            Ok((description.columns, description.params.len()))
        })
    }

    fn prepare<'a>(
        &'a self,
        sql: &'a str,
        declared: &'a [Option<ValueType>],
    ) -> BoxFuture<'a, Result<Description, QueryError>> {
        Box::pin(self.described(sql, declared.to_vec()))
    }

    fn freshness(&self) -> BoxFuture<'_, Result<Freshness, QueryError>> {
        let confirmed_at = self.engine.confirmed_at();
        Box::pin(
            self.short(move |connection| {
                run::freshness(connection, confirmed_at).map_err(|e| error::translate(&e, None))
            }),
        )
    }

    fn release(&self, name: &str) -> BoxFuture<'_, ()> {
        self.engine.release(name);
        Box::pin(std::future::ready(()))
    }
}
