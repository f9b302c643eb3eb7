//! The stream's side: reads, decodes, gathers batches, tells the server how far we are.
//!
//! Batches close at ends of transactions: by size; by age; or at once when the source is quiet and
//! none was closed for a while, so that a lone change is seen in milliseconds and a steady flow comes
//! in batches of [`crate::CaptureOptions::batch_age`]; the end of a backlog closes when the source is quiet. While the sink is busy the open batch grows up to its
//! size; then reading stops, but the server goes on hearing from us.

use std::{sync::Arc, time::Duration};

use millrace_base::{Lsn, Micros};
use millrace_contract::{BatchEnd, Step, TableName, TableSchema};
use millrace_pg::{Connection, replication::LogicalStream};
use millrace_wire::{
    pgoutput::{self, Message, Relation},
    stream::{Frame, StandbyStatus},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    assemble::Assembler,
    error::CaptureError,
    options::CaptureOptions,
    progress::Progress,
    schema,
    spill::{Replay, Spills},
    told::{PREFIX, Told},
};

/// The server hears from us at least this often.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// After this long without a byte the server is asked for a sign of life.
const ASK_AFTER: Duration = Duration::from_secs(20);
/// After this long it is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// The stream counts as quiet after this.
const QUIET: Duration = Duration::from_millis(20);
/// A batch of a backlog gathers for this long at least.
const GATHER_LATE: Duration = Duration::from_millis(100);
/// Log that may pass without a change of ours before the watermark follows.
const IDLE_BYTES_MAX: u64 = 16 << 20;
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// From the reader to the applier.
#[derive(Debug)]
pub(crate) enum Event {
    Step(Step),
    /// The steps since the last close are one batch.
    Close {
        end: BatchEnd,
        changes: u64,
    },
    /// Nothing waits before this position.
    Advance(BatchEnd),
    /// The reader waits between two transactions.
    Held,
    /// Everything before the wanted position has been handed over; the reader waits.
    Reached,
    Failed(CaptureError),
}

/// From the applier to the reader.
#[derive(Debug)]
pub(crate) enum Control {
    /// Close the batch at the next end of a transaction, say [`Event::Held`], wait.
    Hold,
    /// Go on up to the first transaction that commits at or after this, say [`Event::Reached`], wait.
    Until(Lsn),
    /// Go on; a table copied meanwhile has these columns, and its changes count again.
    Release(Option<Arc<TableSchema>>),
}

/// What the sink has made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) watermark: Lsn,
    /// Batches and advances since the session began.
    pub(crate) count: u64,
}

/// The reading task of one session.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) stream: LogicalStream,
    pub(crate) catalog: Arc<Connection>,
    pub(crate) options: Arc<CaptureOptions>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) assembler: Assembler,
    pub(crate) spills: Spills,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) control: mpsc::Receiver<Control>,
    pub(crate) durable: watch::Receiver<Durable>,
    pub(crate) state: ReaderState,
}

/// Where the reader stands.
#[derive(Debug)]
pub(crate) struct ReaderState {
    /// Transactions that commit before this are in the sink already.
    from: Lsn,
    /// Every transaction that commits before this was received: the server sends them in the order of
    /// their commits, and nothing that comes later stands before it.
    received: Lsn,
    /// The server's clock when it sent the newest message.
    sent_at: Micros,
    /// Commit time of the newest transaction seen, or the server's time when it said that there is none.
    newest: Option<Micros>,
    /// The transaction whose pieces come now.
    streaming: Option<u32>,
    /// The current transaction is in the sink already.
    known: bool,
    hold: bool,
    until: Option<Lsn>,
    /// Batches and advances handed over.
    handed_over: u64,
    batch_begun: Option<Instant>,
    last_close: Instant,
    last_status: Instant,
    last_heard: Instant,
    last_change: Instant,
    last_advance: Instant,
    asked: bool,
}

impl ReaderState {
    pub(crate) fn new(from: Lsn, batch_age: Duration) -> Self {
        let now = Instant::now();
        Self {
            from,
            received: from,
            sent_at: Micros::default(),
            newest: None,
            streaming: None,
            known: false,
            hold: false,
            until: None,
            handed_over: 0,
            batch_begun: None,
            last_close: now.checked_sub(batch_age).unwrap_or(now),
            last_status: now,
            last_heard: now,
            last_change: now,
            last_advance: now,
            asked: false,
        }
    }
}

impl Reader {
    /// Reads until something goes wrong; what it was is the last event.
    pub(crate) async fn run(mut self) -> Result<(), CaptureError> {
        if let Err(error) = self.read().await {
            // nobody listens when the session has ended
            self.events.send(Event::Failed(error)).await.ok();
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), CaptureError> {
        self.send_status(false).await?;
        loop {
            while let Some(body) = self.stream.buffered()? {
                self.frame(&body).await?;
            }
            self.look_after().await?;
            let wake = self.next_wake();
            // every branch may be dropped: `fill` and the channels lose nothing
            tokio::select! {
                filled = self.stream.fill() => {
                    filled?;
                    self.state.last_heard = Instant::now();
                    self.state.asked = false;
                }
                () = sleep_until(wake) => {}
                changed = self.durable.changed() => {
                    changed.map_err(|_| CaptureError::Interrupted)?;
                    self.send_status(false).await?;
                }
                control = self.control.recv() => match control {
                    Some(Control::Hold) => self.state.hold = true,
                    Some(Control::Until(_) | Control::Release(_)) => {}
                    None => return Err(CaptureError::Interrupted),
                },
            }
        }
    }

    /// What is due between two reads.
    async fn look_after(&mut self) -> Result<(), CaptureError> {
        let now = Instant::now();
        let silent = now - self.state.last_heard;
        if silent > SILENCE_MAX {
            return Err(CaptureError::Silent { seconds: SILENCE_MAX.as_secs() });
        }
        let ask = silent > ASK_AFTER && !self.state.asked;
        if ask || now - self.state.last_status >= STATUS_EVERY {
            self.state.asked |= ask;
            self.send_status(ask).await?;
        }
        if self.at_rest() {
            self.between_transactions().await?;
            self.advance_if_idle(false).await?;
        }
        Ok(())
    }

    /// Neither a transaction nor a piece of one is open.
    fn at_rest(&self) -> bool {
        !self.assembler.in_transaction() && self.state.streaming.is_none()
    }

    fn next_wake(&self) -> Instant {
        let state = &self.state;
        let status = state.last_status + STATUS_EVERY;
        match state.batch_begun {
            Some(begun) if self.at_rest() && !self.busy() => {
                let quiet = state.last_change + QUIET;
                let quiet = if self.late() { quiet } else { quiet.max(state.last_close + self.options.batch_age) };
                status.min(begun + self.gather()).min(quiet)
            }
            _ => status.min(state.last_advance + self.options.idle_advance).max(Instant::now() + QUIET),
        }
    }

    /// How long the open batch waits for more changes. Those of a backlog have waited long enough: reading on and
    /// writing take turns then, so that neither waits for the other.
    fn gather(&self) -> Duration {
        if self.late() { GATHER_LATE.min(self.options.batch_age) } else { self.options.batch_age }
    }

    /// What the open batch holds was committed longer ago than a batch may take, by the server's own clock.
    fn late(&self) -> bool {
        self.assembler.first_commit().is_some_and(|first| self.state.sent_at.since(first) >= self.options.batch_age)
    }

    /// The sink has not yet committed what it was given.
    fn busy(&self) -> bool {
        self.durable.borrow().count < self.state.handed_over
    }

    async fn frame(&mut self, body: &[u8]) -> Result<(), CaptureError> {
        match Frame::decode(body)? {
            Frame::XLogData { server_end, start, sent_at, payload } => {
                self.progress.heard(server_end);
                self.state.sent_at = sent_at;
                self.state.received = self.state.received.max(start);
                self.message(payload).await?;
                if self.assembler.has_ready() {
                    self.hand_over().await?;
                }
                Ok(())
            }
            Frame::Keepalive { server_end, sent_at, reply_requested } => {
                self.progress.heard(server_end);
                if self.at_rest() {
                    self.stop_before(server_end).await?;
                    self.state.received = self.state.received.max(server_end);
                    self.state.newest.get_or_insert(sent_at);
                    self.advance_if_idle(reply_requested).await?;
                }
                if reply_requested {
                    self.send_status(false).await?;
                }
                Ok(())
            }
        }
    }

    async fn message(&mut self, payload: &[u8]) -> Result<(), CaptureError> {
        let decoded = pgoutput::decode(payload, self.state.streaming.is_some())?;
        if let Some(xid) = self.state.streaming {
            match (decoded.message, decoded.xid) {
                (Message::StreamStop, _) => self.state.streaming = None,
                // told of only once it has committed
                (Message::Logical { prefix: PREFIX, .. }, Some(subxid)) => self.spills.keep(xid, subxid, payload)?,
                (Message::Logical { .. } | Message::Type { .. }, _) => {}
                (_, Some(subxid)) => self.spills.keep(xid, subxid, payload)?,
                (other, None) => {
                    return Err(CaptureError::Stream(format!(
                        "{:?} within a streamed transaction",
                        std::mem::discriminant(&other)
                    )));
                }
            }
            return Ok(());
        }
        match decoded.message {
            Message::Begin { final_lsn, commit_time, .. } => {
                self.stop_before(final_lsn).await?;
                self.state.known = final_lsn < self.state.from;
                self.assembler.begin(final_lsn, commit_time);
            }
            Message::Commit { end_lsn, commit_time, .. } => self.committed(end_lsn, commit_time).await?,
            Message::Relation(relation) => self.relation(&relation).await?,
            Message::StreamStart { xid, .. } => self.state.streaming = Some(xid),
            Message::StreamAbort { xid, subxid } => self.spills.abort(xid, subxid),
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
                self.stop_before(commit_lsn).await?;
                let replay = self.spills.take(xid)?;
                self.state.known = commit_lsn < self.state.from;
                self.assembler.begin(commit_lsn, commit_time);
                if let Some(replay) = replay {
                    self.replay(replay).await?;
                }
                self.committed(end_lsn, commit_time).await?;
            }
            Message::Logical { transactional: true, prefix, content, .. } => self.told(prefix, content)?,
            Message::StreamStop | Message::Origin { .. } | Message::Type { .. } | Message::Logical { .. } => {}
            change => self.change(&change)?,
        }
        Ok(())
    }

    /// A table whose rows changed without a row in the log is copied anew.
    fn told(&mut self, prefix: &str, content: &[u8]) -> Result<(), CaptureError> {
        if self.state.known {
            return Ok(());
        }
        let Some(told) = Told::read(prefix, content) else { return Ok(()) };
        let Some(table) = self.assembler.name_of(told.oid).cloned() else { return Ok(()) };
        let schema = self.assembler.schema_of(&table);
        let knows = |column: &str| schema.is_some_and(|schema| schema.position(column).is_some());
        if self.assembler.skips(&table) || !told.makes_stale(knows) {
            return Ok(());
        }
        tracing::info!(%table, told = ?told, "the source tells that rows changed without a trace in the log");
        Err(CaptureError::Altered { table })
    }

    fn change(&mut self, change: &Message<'_>) -> Result<(), CaptureError> {
        if self.state.known {
            return Ok(());
        }
        self.assembler.change(change)?;
        if self.state.batch_begun.is_none()
            && let Some(first) = self.assembler.first_commit()
        {
            self.state.batch_begun = Some(Instant::now());
            self.progress.batch_begun(first);
        }
        Ok(())
    }

    /// Reads a streamed transaction back, now that it has committed.
    async fn replay(&mut self, mut replay: Replay) -> Result<(), CaptureError> {
        let mut count = 0u64;
        while let Some((payload, aborted)) = replay.next()? {
            match pgoutput::decode(payload, true)?.message {
                // even from a part that was rolled back: the server does not send it again
                Message::Relation(relation) => self.relation(&relation).await?,
                _ if aborted => {}
                Message::Logical { prefix, content, .. } => self.told(prefix, content)?,
                change => self.change(&change)?,
            }
            if self.assembler.has_ready() {
                self.hand_over().await?;
            }
            count += 1;
            if count.is_multiple_of(4096) {
                tokio::task::yield_now().await;
                if self.state.last_status.elapsed() >= STATUS_EVERY {
                    self.send_status(false).await?;
                }
            }
        }
        Ok(())
    }

    async fn relation(&mut self, relation: &Relation<'_>) -> Result<(), CaptureError> {
        let table = TableName::new(relation.schema, relation.name);
        if !self.assembler.wants(&table) {
            // a table of ours that was renamed
            return match self.assembler.name_of(relation.oid) {
                Some(known) => {
                    Err(CaptureError::TableLeft { table: known.clone(), publication: self.options.publication.clone() })
                }
                None => Ok(()),
            };
        }
        let columns = schema::columns_of(relation);
        let looked_up =
            schema::of_relation(&self.catalog, table.clone(), relation.oid, relation.identity, columns).await;
        match looked_up {
            Ok(schema) => {
                if let Some(old) = self.assembler.schema_of(&table)
                    && !self.assembler.skips(&table)
                    && schema::is_stale(&self.catalog, old, &schema).await?
                {
                    return Err(CaptureError::Altered { table });
                }
                self.assembler.relation(schema);
            }
            Err(CaptureError::NoKey { .. }) if self.assembler.skips(&table) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn committed(&mut self, end_lsn: Lsn, commit_time: Micros) -> Result<(), CaptureError> {
        self.assembler.commit(end_lsn);
        self.state.known = false;
        self.state.received = self.state.received.max(end_lsn);
        self.state.newest = Some(commit_time);
        self.state.last_change = Instant::now();
        self.between_transactions().await
    }

    /// Closes the batch if it is time; waits if asked to.
    async fn between_transactions(&mut self) -> Result<(), CaptureError> {
        if self.state.hold {
            self.state.hold = false;
            self.close().await?;
            self.send(Event::Held).await?;
            self.wait_for_release().await?;
        } else if self.is_time_to_close() {
            self.close().await?;
        }
        Ok(())
    }

    fn is_time_to_close(&self) -> bool {
        let Some(begun) = self.state.batch_begun else { return false };
        if self.assembler.batch_bytes() >= self.options.batch_bytes_max {
            return true;
        }
        let now = Instant::now();
        let age = self.options.batch_age;
        let quiet = now - self.state.last_change >= QUIET && (now - self.state.last_close >= age || self.late());
        (now - begun >= self.gather() || quiet) && !self.busy()
    }

    async fn close(&mut self) -> Result<(), CaptureError> {
        self.state.batch_begun = None;
        if let Some(closed) = self.assembler.close() {
            self.state.last_close = Instant::now();
            self.state.last_advance = Instant::now();
            for step in closed.steps {
                self.send(Event::Step(step)).await?;
            }
            self.state.handed_over += 1;
            self.send(Event::Close { end: closed.end, changes: closed.changes }).await?;
        }
        Ok(())
    }

    async fn hand_over(&mut self) -> Result<(), CaptureError> {
        for step in self.assembler.take_ready() {
            self.send(Event::Step(step)).await?;
        }
        Ok(())
    }

    /// If a transaction that commits at `lsn` is not to be taken yet: hands over what is before it and waits.
    async fn stop_before(&mut self, lsn: Lsn) -> Result<(), CaptureError> {
        if self.state.until.is_some_and(|until| lsn >= until) {
            self.state.until = None;
            self.close().await?;
            self.send(Event::Reached).await?;
            self.wait_for_release().await?;
        }
        Ok(())
    }

    /// Waits for the applier's word, while the server goes on hearing from us.
    async fn wait_for_release(&mut self) -> Result<(), CaptureError> {
        loop {
            tokio::select! {
                control = self.control.recv() => {
                    match control {
                        Some(Control::Until(lsn)) => self.state.until = Some(lsn),
                        Some(Control::Release(copied)) => {
                            if let Some(schema) = copied {
                                self.assembler.unskip(&schema.table);
                                self.assembler.relation(schema);
                            }
                        }
                        Some(Control::Hold) => continue,
                        None => return Err(CaptureError::Interrupted),
                    }
                    // the wait was ours, not the server's
                    self.state.last_heard = Instant::now();
                    return Ok(());
                }
                () = sleep_until(self.state.last_status + STATUS_EVERY) => self.send_status(false).await?,
                changed = self.durable.changed() => {
                    changed.map_err(|_| CaptureError::Interrupted)?;
                    self.send_status(false).await?;
                }
            }
        }
    }

    /// Hands an event over, while the server goes on hearing from us.
    async fn send(&mut self, event: Event) -> Result<(), CaptureError> {
        let events = self.events.clone();
        let permit = events.reserve();
        tokio::pin!(permit);
        loop {
            tokio::select! {
                permit = &mut permit => {
                    permit.map_err(|_| CaptureError::Interrupted)?.send(event);
                    self.state.last_heard = Instant::now();
                    return Ok(());
                }
                () = sleep_until(self.state.last_status + STATUS_EVERY) => self.send_status(false).await?,
                changed = self.durable.changed() => {
                    changed.map_err(|_| CaptureError::Interrupted)?;
                    self.send_status(false).await?;
                }
            }
        }
    }

    /// Lets the watermark follow the log of an idle source. To be called at rest.
    async fn advance_if_idle(&mut self, asked: bool) -> Result<(), CaptureError> {
        let idle = self.state.received;
        let durable = *self.durable.borrow();
        let waiting = self.assembler.first_commit().is_some() || durable.count < self.state.handed_over;
        if waiting || idle <= durable.watermark {
            return Ok(());
        }
        self.progress.caught_up(idle);
        let due = self.state.last_advance.elapsed() >= self.options.idle_advance;
        if asked || due || idle.bytes_since(durable.watermark) > IDLE_BYTES_MAX {
            self.state.last_advance = Instant::now();
            self.state.handed_over += 1;
            let commit_time = self.state.newest.unwrap_or_default();
            self.send(Event::Advance(BatchEnd { watermark: idle, commit_time, transactions: 0 })).await?;
        }
        Ok(())
    }

    async fn send_status(&mut self, reply_requested: bool) -> Result<(), CaptureError> {
        let watermark = self.durable.borrow_and_update().watermark;
        let status = StandbyStatus {
            written: self.state.received.max(watermark),
            flushed: watermark,
            applied: watermark,
            sent_at: self.progress.clock().wall(),
            reply_requested,
        };
        self.state.last_status = Instant::now();
        Ok(self.stream.send_status(&status, SEND_DEADLINE).await?)
    }
}
