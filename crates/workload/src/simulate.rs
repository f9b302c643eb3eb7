//! Live customers: transactions at a steady rate, over some connections, across restarts of the server.
//!
//! A tick is due at `start + tick / rate` and belongs to one of the workers. What happens at it is
//! chosen by the seed alone. A tick that cannot be met within a second (the server is away) is missed,
//! not made up for: customers do not queue for days.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_base::{Backoff, Tasks};
use millrace_config::pack::Script;
use millrace_pg::{ConnectParams, Connection, PgError, connect};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_postgres::{
    Statement,
    types::{ToSql, Type},
};
use tokio_util::sync::CancellationToken;

use crate::{
    WorkloadError,
    operation::{Choice, Operation, choose},
};

const CONNECT: Duration = Duration::from_secs(5);
const OPERATION: Duration = Duration::from_secs(30);
const LATE_MAX: Duration = Duration::from_secs(1);
const PROGRESS: Duration = Duration::from_secs(1);
const STOP: Duration = Duration::from_secs(35);
const RATE_MAX: f64 = 10_000.0;

/// How customers act.
#[derive(Debug, Clone, Copy)]
pub struct Simulation {
    /// Transactions a second, over all connections.
    pub rate: f64,
    pub seed: u64,
    pub connections: usize,
}

impl Simulation {
    /// With as many connections as the rate needs.
    #[must_use]
    pub fn new(rate: f64, seed: u64) -> Self {
        let connections = match rate {
            r if r <= 20.0 => 2,
            r if r <= 200.0 => 4,
            _ => 8,
        };
        Self { rate, seed, connections }
    }
}

/// What became of the transactions of one operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Committed, with an effect.
    pub done: u64,
    /// Committed; there was nothing to act on.
    pub idle: u64,
    /// Rolled back by the server: a conflict, a constraint.
    pub refused: u64,
    /// The connection was lost meanwhile: committed or not. Not repeated.
    pub in_doubt: u64,
}

/// Everything so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub operations: BTreeMap<String, Counts>,
    /// Transactions that were due while no server answered.
    pub missed: u64,
    pub reconnects: u64,
    /// The newest refusal or loss, in the server's words.
    pub last_trouble: Option<String>,
}

impl Progress {
    /// Over all operations.
    #[must_use]
    pub fn total(&self) -> Counts {
        self.operations.values().fold(Counts::default(), |sum, counts| Counts {
            done: sum.done + counts.done,
            idle: sum.idle + counts.idle,
            refused: sum.refused + counts.refused,
            in_doubt: sum.in_doubt + counts.in_doubt,
        })
    }

    fn add(&mut self, operations: &[Operation], event: Event) {
        let (operation, outcome) = match event {
            Event::Missed => {
                self.missed += 1;
                return;
            }
            Event::Reconnected => {
                self.reconnects += 1;
                return;
            }
            Event::Ended { operation, outcome } => (operation, outcome),
        };
        let Some(name) = operations.get(operation).map(|o| o.name.clone()) else { return };
        let counts = self.operations.entry(name).or_default();
        match outcome {
            Outcome::Done => counts.done += 1,
            Outcome::Idle => counts.idle += 1,
            Outcome::Refused(why) => {
                counts.refused += 1;
                self.last_trouble = Some(why);
            }
            Outcome::InDoubt(why) => {
                counts.in_doubt += 1;
                self.last_trouble = Some(why);
            }
        }
    }
}

#[derive(Debug)]
enum Event {
    Missed,
    Reconnected,
    Ended { operation: usize, outcome: Outcome },
}

#[derive(Debug)]
enum Outcome {
    Done,
    Idle,
    Refused(String),
    InDoubt(String),
}

/// Acts until `token` is cancelled; `on_progress` hears about it every second and at the end.
///
/// # Errors
/// If the first connection fails, an operation is not valid SQL, or the role lacks a right. A server
/// that goes away later is waited for.
pub async fn simulate(
    params: &ConnectParams,
    scripts: &[Script],
    simulation: Simulation,
    token: CancellationToken,
    mut on_progress: impl FnMut(&Progress),
) -> Result<Progress, WorkloadError> {
    if !(simulation.rate > 0.0 && simulation.rate <= RATE_MAX) {
        return Err(WorkloadError::BadRate(simulation.rate));
    }
    let operations: Arc<[Operation]> = scripts.iter().map(Operation::parse).collect::<Result<_, _>>()?;
    if operations.is_empty() {
        return Err(WorkloadError::Absent { what: "operations (simulate/*.sql)" });
    }
    // whatever is wrong for good shows on the first connection
    let first = Session::open(params, &operations).await?;

    let (events, mut incoming) = mpsc::channel(1024);
    let mut tasks = Tasks::new(token.child_token());
    let started = Instant::now();
    let mut first = Some(first);
    let workers = u64::try_from(simulation.connections.max(1)).unwrap_or(1);
    for worker in 0..workers {
        let worker = Worker {
            params: params.clone(),
            operations: operations.clone(),
            simulation,
            ticks: (worker, workers),
            started,
            was_connected: first.is_some(),
            session: first.take(),
            events: events.clone(),
            token: tasks.token().clone(),
        };
        tasks.spawn("customer", worker.run());
    }
    drop(events);

    let mut progress = Progress::default();
    let mut every = tokio::time::interval(PROGRESS);
    let mut failure = None;
    loop {
        // all three may be dropped and called again
        tokio::select! {
            event = incoming.recv() => match event {
                Some(event) => progress.add(&operations, event),
                None => break,
            },
            _ = every.tick() => on_progress(&progress),
            Some(ended) = tasks.join_next() => if let Err(error) = ended {
                failure.get_or_insert(error);
                tasks.token().cancel();
            },
        }
    }
    let left = tasks.shutdown(STOP).await;
    on_progress(&progress);
    match failure.or_else(|| left.into_iter().next()) {
        Some(millrace_base::task::TaskError::Failed { name, source }) => {
            Err(match source.downcast::<WorkloadError>() {
                Ok(error) => *error,
                Err(source) => millrace_base::task::TaskError::Failed { name, source }.into(),
            })
        }
        Some(panicked) => Err(panicked.into()),
        None => Ok(progress),
    }
}

/// A connection with every operation prepared.
#[derive(Debug)]
struct Session {
    connection: Connection,
    statements: Vec<Statement>,
}

impl Session {
    async fn open(params: &ConnectParams, operations: &[Operation]) -> Result<Self, WorkloadError> {
        let failed = |source| WorkloadError::Connect { address: params.address(), source: Box::new(source) };
        let connection = connect(params, CONNECT).await.map_err(failed)?;
        let mut statements = Vec::new();
        for operation in operations {
            let types = vec![Type::FLOAT8; operation.draws];
            let prepared = connection.prepare_typed(&operation.sql, &types).await.map_err(PgError::from);
            statements.push(prepared.map_err(|source| match source.is_transient() {
                true => failed(source),
                false => WorkloadError::Operation { name: operation.name.clone(), source: Box::new(source) },
            })?);
        }
        Ok(Self { connection, statements })
    }
}

/// One customer after the other on one connection.
#[derive(Debug)]
struct Worker {
    params: ConnectParams,
    operations: Arc<[Operation]>,
    simulation: Simulation,
    /// The first, and the step to the next.
    ticks: (u64, u64),
    started: Instant,
    session: Option<Session>,
    /// It had a session before; set by the worker, for the count of reconnects.
    was_connected: bool,
    events: mpsc::Sender<Event>,
    token: CancellationToken,
}

impl Worker {
    async fn run(mut self) -> Result<(), WorkloadError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let (mut tick, step) = self.ticks;
        loop {
            let due = self.due(tick);
            if !self.pause(due.saturating_duration_since(Instant::now())).await {
                return Ok(());
            }
            if due.elapsed() > LATE_MAX {
                self.tell(Event::Missed).await;
                tick += step;
                continue;
            }
            let Some(session) = self.session.take() else {
                if !self.reconnect(&mut backoff).await? {
                    return Ok(());
                }
                continue;
            };
            let Some(choice) = choose(&self.operations, self.simulation.seed, tick) else { return Ok(()) };
            // not cut short by the token: a transaction that began is seen to its end
            let (outcome, usable) = self.act(&session, &choice).await?;
            if usable {
                backoff.reset();
                self.session = Some(session);
            }
            self.tell(Event::Ended { operation: choice.operation, outcome }).await;
            tick += step;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks stay below 2^53 for 28,000 years at the highest rate")]
    fn due(&self, tick: u64) -> Instant {
        self.started + Duration::try_from_secs_f64(tick as f64 / self.simulation.rate).unwrap_or(Duration::MAX)
    }

    /// One try after a delay. False: it is time to stop.
    async fn reconnect(&mut self, backoff: &mut Backoff) -> Result<bool, WorkloadError> {
        if !self.pause(backoff.next_delay()).await {
            return Ok(false);
        }
        match Session::open(&self.params, &self.operations).await {
            Ok(session) => {
                self.session = Some(session);
                if std::mem::replace(&mut self.was_connected, true) {
                    self.tell(Event::Reconnected).await;
                }
            }
            Err(WorkloadError::Connect { source, .. }) if source.is_transient() => {
                tracing::debug!(error = %source, "the server does not answer");
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Runs one operation; tells also whether the connection is still good.
    async fn act(&self, session: &Session, choice: &Choice) -> Result<(Outcome, bool), WorkloadError> {
        let Some(statement) = session.statements.get(choice.operation) else { return Ok((Outcome::Idle, true)) };
        let draws: Vec<&(dyn ToSql + Sync)> = choice.draws.iter().map(|d| d as &(dyn ToSql + Sync)).collect();
        let error = match tokio::time::timeout(OPERATION, session.connection.query(statement, &draws)).await {
            Ok(Ok(rows)) if rows.is_empty() => return Ok((Outcome::Idle, true)),
            Ok(Ok(_)) => return Ok((Outcome::Done, true)),
            Ok(Err(error)) => PgError::from(error),
            Err(_) => PgError::Timeout { address: self.params.address(), deadline: OPERATION },
        };
        let why = error.to_string();
        match error.sqlstate().map(|state| (state.get(..2).unwrap_or_default(), state)) {
            // a server on its way down may have committed before it said so; then the words are lost
            None | Some(("08" | "57", _)) => Ok((Outcome::InDoubt(why), false)),
            // a primary that became a standby: look for the one that is primary now
            Some((_, "25006")) => Ok((Outcome::Refused(why), false)),
            // a mistake in the pack, or a right that is lacking: it will not get better
            Some(("42", _)) => {
                let name = self.operations.get(choice.operation).map(|o| o.name.clone()).unwrap_or_default();
                Err(WorkloadError::Operation { name, source: Box::new(error) })
            }
            Some(_) => Ok((Outcome::Refused(why), true)),
        }
    }

    /// False: it is time to stop.
    async fn pause(&self, delay: Duration) -> bool {
        tokio::select! {
            () = self.token.cancelled() => false,
            () = tokio::time::sleep(delay) => !self.token.is_cancelled(),
        }
    }

    /// A closed channel means that no one counts any more, and the token is cancelled too.
    async fn tell(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            self.token.cancel();
        }
    }
}
