//! The sink's side of a session: applies what the reader hands over, in order, and serves requests
//! between batches.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use millrace_base::{Lsn, failpoint};
use millrace_contract::{Applied, BatchEnd, RunKind, Sink, SinkError, Step, TableName, TableSchema};
use millrace_pg::{
    Connection,
    replication::{CreatedSlot, RawConnection},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    copy::{self, Copy, Snapshot},
    error::{CaptureError, Next},
    options::{Barrier, CaptureOptions, Command},
    progress::Progress,
    reader::{Control, Durable, Event},
    source::{self, Membership},
};

const CONNECT: Duration = Duration::from_secs(15);
/// Until a copy that failed is tried again; sooner if only the table was altered meanwhile.
const RETRY_COPY: Duration = Duration::from_secs(10);
const RETRY_MOVED: Duration = Duration::from_millis(200);
const CHECK_PUBLICATION_EVERY: Duration = Duration::from_secs(5);

/// A sink, and whether a batch of it is open.
#[derive(Debug)]
pub(crate) struct Batches<S> {
    pub(crate) sink: S,
    open: bool,
    system_id: u64,
}

impl<S: Sink> Batches<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self { sink, open: false, system_id: 0 }
    }

    pub(crate) fn loaded_from(&mut self, system_id: u64) {
        self.system_id = system_id;
    }

    pub(crate) async fn begin(&mut self, kind: RunKind) -> Result<(), SinkError> {
        self.sink.begin(kind, self.system_id).await?;
        self.open = true;
        Ok(())
    }

    pub(crate) async fn append(&mut self, step: Step) -> Result<(), SinkError> {
        self.sink.append(step).await
    }

    pub(crate) async fn commit(&mut self, end: BatchEnd) -> Result<Applied, SinkError> {
        // whatever comes of it, nothing is open any more
        self.open = false;
        self.sink.commit(end).await
    }

    /// Forgets what is open, if anything is.
    pub(crate) async fn give_up(&mut self) -> Result<(), SinkError> {
        if std::mem::take(&mut self.open) { self.sink.rollback().await } else { Ok(()) }
    }

    /// Writes a whole copy as one batch.
    pub(crate) async fn write_copy(
        &mut self,
        kind: RunKind,
        mut copy: Copy,
        end: BatchEnd,
        (options, term): (&CaptureOptions, u64),
        token: &CancellationToken,
    ) -> Result<Applied, CaptureError> {
        self.begin(kind).await?;
        for schema in std::mem::take(&mut copy.schemas) {
            self.append(Step::Schema(schema)).await?;
        }
        loop {
            let step = tokio::select! {
                step = copy.steps.recv() => step,
                () = token.cancelled() => return Err(CaptureError::Interrupted),
            };
            let Some(step) = step else { break };
            self.append(step?).await?;
            failpoint::pass("capture.during_copy")?;
        }
        copy.finish().await?;
        options.kept(term, end.watermark, token).await?;
        Ok(self.commit(end).await?)
    }
}

/// One session's applying half.
#[derive(Debug)]
pub(crate) struct Applier<'a, S> {
    pub(crate) batches: &'a mut Batches<S>,
    pub(crate) options: Arc<CaptureOptions>,
    /// Of the server whose log it is.
    pub(crate) term: u64,
    pub(crate) progress: Arc<Progress>,
    pub(crate) catalog: Arc<Connection>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) control: mpsc::Sender<Control>,
    pub(crate) durable: watch::Sender<Durable>,
    pub(crate) memberships: BTreeMap<TableName, Membership>,
    /// Copies to make before anything else is asked.
    pub(crate) missing: VecDeque<TableName>,
    /// When to try the next of them.
    pub(crate) missing_from: Instant,
    /// Their leaving the publication is no news.
    pub(crate) quarantined: Vec<TableName>,
    /// Quarantined because they left: copied anew once they are back.
    pub(crate) left: Vec<TableName>,
    pub(crate) token: CancellationToken,
}

/// A barrier that the reader waits at, and what the source shows there.
type AtBarrier = (RawConnection, CreatedSlot);
/// What a copy wrote, and the table's columns in it.
type Copied = (Applied, Option<Arc<TableSchema>>);

impl<S: Sink> Applier<'_, S> {
    /// Applies until the token is cancelled (`Ok`) or something goes wrong.
    pub(crate) async fn run(mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), CaptureError> {
        let mut check = interval(CHECK_PUBLICATION_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let token = self.token.clone();
        let mut commands_open = true;
        loop {
            if Instant::now() >= self.missing_from
                && let Some(table) = self.missing.pop_front()
            {
                self.resync(table, None).await?;
                continue;
            }
            // every branch may be dropped: the channels lose nothing
            tokio::select! {
                () = token.cancelled() => {
                    self.batches.give_up().await?;
                    return Ok(());
                }
                event = self.events.recv() => {
                    let event = event.ok_or(CaptureError::Interrupted)?;
                    self.take(event).await?;
                }
                command = commands.recv(), if commands_open => match command {
                    Some(Command::Barrier { name, reply }) => self.barrier(&name, reply).await?,
                    Some(Command::Resync { table, reply }) => self.resync(table, Some(reply)).await?,
                    None => commands_open = false,
                },
                () = sleep_until(self.missing_from), if !self.missing.is_empty() => {}
                _ = check.tick() => self.check_publication().await?,
            }
        }
    }

    /// Takes one event. `Held` and `Reached` matter to those who wait for them only.
    async fn take(&mut self, event: Event) -> Result<(), CaptureError> {
        match event {
            Event::Step(step) => {
                if !self.batches.open {
                    self.batches.begin(RunKind::Changes).await?;
                }
                self.batches.append(step).await?;
            }
            Event::Close { end, changes } => {
                failpoint::pass("capture.before_commit")?;
                let watermark = end.watermark;
                self.options.kept(self.term, watermark, &self.token).await?;
                self.batches.commit(end).await?;
                failpoint::pass("capture.after_commit_before_feedback")?;
                self.progress.applied(watermark, changes);
                self.made_durable(watermark);
            }
            Event::Advance(end) => {
                let watermark = end.watermark;
                self.options.kept(self.term, watermark, &self.token).await?;
                self.batches.sink.advance(end).await?;
                self.progress.advanced(watermark);
                self.made_durable(watermark);
            }
            Event::Held | Event::Reached => {}
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn made_durable(&self, watermark: Lsn) {
        self.durable.send_modify(|durable| {
            durable.watermark = durable.watermark.max(watermark);
            durable.count += 1;
        });
    }

    async fn tell(&self, control: Control) -> Result<(), CaptureError> {
        self.control.send(control).await.map_err(|_| CaptureError::Interrupted)
    }

    /// Applies until the reader waits. The reader's own watch over the source bounds this.
    async fn until_reader_waits(&mut self) -> Result<(), CaptureError> {
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event.ok_or(CaptureError::Interrupted)?,
                () = self.token.cancelled() => return Err(CaptureError::Interrupted),
            };
            let waits = matches!(event, Event::Held | Event::Reached);
            self.take(event).await?;
            if waits {
                return Ok(());
            }
        }
    }

    /// Goes to the consistent point of a new snapshot of the source: everything before it is applied,
    /// nothing after it, and the reader waits. The inner error concerns the request alone.
    ///
    /// The reader is held first, so the point cannot lie before what it has read already.
    async fn go_to_barrier(&mut self) -> Result<Result<AtBarrier, CaptureError>, CaptureError> {
        self.tell(Control::Hold).await?;
        self.until_reader_waits().await?;
        let slot = self.barrier_slot().await;
        let (connection, slot) = match slot {
            Ok(made) => made,
            Err(error) => {
                self.tell(Control::Release(None)).await?;
                return Ok(Err(error));
            }
        };
        self.tell(Control::Until(slot.consistent_point)).await?;
        self.until_reader_waits().await?;
        Ok(Ok((connection, slot)))
    }

    async fn barrier_slot(&self) -> Result<AtBarrier, CaptureError> {
        let mut connection = RawConnection::connect_replication(&self.options.source, CONNECT).await?;
        let name = format!("{}_barrier_{}", self.options.slot, self.progress.clock().wall().0);
        let slot = connection.create_logical_slot(&name, true, self.options.barrier_deadline).await?;
        // brings the stream past the point soon, even if the source is idle
        self.catalog.query_one(include_str!("../sql/heartbeat.sql"), &[]).await?;
        Ok((connection, slot))
    }

    async fn barrier(
        &mut self,
        name: &str,
        reply: oneshot::Sender<Result<Barrier, CaptureError>>,
    ) -> Result<(), CaptureError> {
        let answer = match self.go_to_barrier().await? {
            Err(error) => Err(error),
            Ok((connection, slot)) => {
                let pinned = self.batches.sink.pin(name).await;
                self.tell(Control::Release(None)).await?;
                pinned.map_err(CaptureError::from).map(|()| Barrier {
                    lsn: slot.consistent_point,
                    snapshot: slot.snapshot,
                    connection,
                })
            }
        };
        // the asker may have given up
        reply.send(answer).ok();
        Ok(())
    }

    /// Copies a table anew at a barrier; `reply` is absent when nobody asked.
    async fn resync(
        &mut self,
        table: TableName,
        reply: Option<oneshot::Sender<Result<Applied, CaptureError>>>,
    ) -> Result<(), CaptureError> {
        let copied = match self.copy_at_barrier(&table).await? {
            Ok((applied, schema)) => {
                self.quarantined.retain(|quarantined| *quarantined != table);
                self.tell(Control::Release(schema)).await?;
                Ok(applied)
            }
            Err(error) => Err((table, error)),
        };
        match (reply, copied) {
            (Some(reply), copied) => {
                reply.send(copied.map_err(|(_, error)| error)).ok();
                Ok(())
            }
            (None, Ok(_)) => Ok(()),
            (None, Err((table, error))) if error.next() == Next::Retry => {
                tracing::warn!(%table, %error, "a table could not be copied; it is tried again");
                let wait = if matches!(error, CaptureError::Moved { .. }) { RETRY_MOVED } else { RETRY_COPY };
                self.missing.push_back(table);
                self.missing_from = Instant::now() + wait;
                Ok(())
            }
            (None, Err((_, error))) => Err(error),
        }
    }

    /// The outer error ends the session; the inner one is the asker's, and the reader goes on.
    async fn copy_at_barrier(&mut self, table: &TableName) -> Result<Result<Copied, CaptureError>, CaptureError> {
        if !self.options.tables.contains(table) {
            return Ok(Err(CaptureError::NotCaptured { table: table.clone() }));
        }
        let published = source::published(&self.catalog, &self.options.publication).await?;
        let Some(membership) = published.get(table).filter(|m| !m.partial) else {
            let publication = self.options.publication.clone();
            return Ok(Err(CaptureError::TableLeft { table: table.clone(), publication }));
        };
        self.memberships.insert(table.clone(), *membership);
        let (_connection, slot) = match self.go_to_barrier().await? {
            Ok(at_barrier) => at_barrier,
            Err(error) => return Ok(Err(error)),
        };
        let lsn = slot.consistent_point;
        let taken_at = self.progress.clock().wall();
        let snapshot = Snapshot { name: slot.snapshot, lsn, taken_at };
        let end = BatchEnd { watermark: lsn, commit_time: taken_at, transactions: 0 };
        let copied =
            match copy::start(&self.options, std::slice::from_ref(table), snapshot, self.progress.clone()).await {
                Ok(copy) => {
                    let schema = copy.schemas.first().cloned();
                    let of = (&*self.options, self.term);
                    let kind = RunKind::Resync(table.clone());
                    let written = self.batches.write_copy(kind, copy, end, of, &self.token).await;
                    written.map(|applied| (applied, schema))
                }
                Err(error) => Err(error),
            };
        match copied {
            Ok(copied) => {
                self.progress.resynced(lsn, table);
                self.durable.send_modify(|durable| durable.watermark = durable.watermark.max(lsn));
                Ok(Ok(copied))
            }
            // the sink holds the reason; the session begins anew with it
            Err(error @ (CaptureError::Sink(_) | CaptureError::Failpoint(_))) => Err(error),
            Err(error) => {
                self.batches.give_up().await?;
                self.tell(Control::Release(None)).await?;
                Ok(Err(error))
            }
        }
    }

    /// What was not published was not streamed: a table that left, even for a moment, needs a fresh copy.
    async fn check_publication(&mut self) -> Result<(), CaptureError> {
        source::check_publication(&self.catalog, &self.options).await?;
        let published = source::published(&self.catalog, &self.options.publication).await?;
        let gone = |(table, membership): (&TableName, &Membership)| {
            let same = published.get(table).is_some_and(|m| m.oid == membership.oid && !m.partial);
            (!same && !self.quarantined.contains(table)).then(|| table.clone())
        };
        let back = |table: &TableName| published.get(table).is_some_and(|m| !m.partial);
        for table in self.left.extract_if(.., |table| back(table)) {
            tracing::info!(%table, "a table is back in the publication and is copied anew");
            self.missing.push_back(table);
            self.missing_from = Instant::now();
        }
        match self.memberships.iter().find_map(gone) {
            Some(table) => Err(CaptureError::TableLeft { table, publication: self.options.publication.clone() }),
            None => Ok(()),
        }
    }
}
