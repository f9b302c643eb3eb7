//! Streams the log of a server into the repository, over a slot of its own.
//!
//! Invariants: the server is told that log is safe only after the repository has it durably; whole segments go up in
//! order; while the repository is away nothing is acknowledged, and no more than a few segments are held in memory:
//! the rest waits on the server, whose slot bounds it (`max_slot_wal_keep_size`).

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesOrdered};
use millrace_base::{Backoff, Clock, Lsn, SystemClock};
use millrace_pg::{
    ConnectParams, PgError,
    replication::{PhysicalItem, PhysicalOptions, PhysicalStart, PhysicalStream, RawConnection},
};
use millrace_wire::stream::{Frame, StandbyStatus};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    archive::{self, Inventory, Pace, Rooms, inventory},
    put_history,
    segment::{History, Segment},
};
use crate::{error::BackupError, repo::Repository};

const CONNECT: Duration = Duration::from_secs(10);
const COMMAND: Duration = Duration::from_secs(30);
/// A server that says nothing for so long, though asked, is not there any more.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often the server is told where we are, and asked for an answer.
const REPLY_EVERY: Duration = Duration::from_secs(5);
/// With more log than this on the server the archive is behind.
const BEHIND_BYTES: u64 = 128 << 20;

/// Whose log is received.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    pub params: ConnectParams,
    /// The physical slot; made if it is not there.
    pub slot: String,
    /// The unfinished segment is uploaded so often: what may be lost with the server.
    pub flush_every: Duration,
    /// Uploads at a time; each holds a segment in memory.
    pub uploads_max: usize,
}

/// Where the receiver stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReceiveStatus {
    pub connected: bool,
    pub timeline: u32,
    /// The server's end, as it said last.
    pub server: Lsn,
    pub received: Lsn,
    /// In the repository.
    pub durable: Lsn,
    /// Why nothing goes on, while that is so.
    pub failing: Option<String>,
}

impl ReceiveStatus {
    /// Log that the server has and the repository has not.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        self.server.max(self.received).bytes_since(self.durable)
    }
}

/// Receives until `stop` is cancelled; then uploads what it holds and returns. Lost connections and repositories that
/// are away are waited for, with growing pauses, and told in `status`.
///
/// # Errors
/// What waiting cannot mend: another content is archived under the same name, the server is another one, the log is
/// gone from the server.
pub async fn receive(
    repo: &Repository,
    options: &ReceiveOptions,
    status: &watch::Sender<ReceiveStatus>,
    stop: &CancellationToken,
) -> Result<(), BackupError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let mut skip_to = None;
    loop {
        let mut session = Session { repo, options, status, stop, system_id: 0, rooms: Arc::default() };
        let skip = skip_to.take();
        let before = status.borrow().received;
        let ended = session.run(skip).await;
        // not tried yet: the server was away, or still held the slot for the session before
        skip_to = skip.filter(|_| status.borrow().received == before);
        status.send_modify(|now| now.connected = false);
        match ended {
            Ok(()) | Err(BackupError::Cancelled) if stop.is_cancelled() => return Ok(()),
            Ok(()) => backoff.reset(),
            Err(BackupError::WalLost { from, to }) if skip.is_none() => {
                tracing::error!(%from, %to, slot = options.slot, "log is lost: no restore can pass this gap; make a full backup now");
                skip_to = Some(to);
                continue;
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, tries = backoff.tries(), "the log's archive is interrupted");
                status.send_modify(|now| now.failing = Some(error.to_string()));
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Where to begin. Pure.
///
/// `slot` is what the server keeps log from; `history` is that of `timeline`, which the server is on.
fn beginning(inventory: &Inventory, timeline: u32, history: &History, slot: Lsn) -> Segment {
    let bytes = inventory.segment_bytes;
    let mut newer: Option<(u32, Lsn)> = None;
    for (ancestor, begin) in history.path(timeline) {
        let whole = inventory.segments.keys().rfind(|segment| segment.timeline == ancestor).map(|last| last.next());
        let started = inventory.parts.keys().rfind(|segment| segment.timeline == ancestor).copied();
        if let Some(next) = whole.max(started.filter(|_| whole.is_none())) {
            return match newer {
                // the rest of that timeline is not this server's
                Some((newer, switch)) if next.start(bytes) >= switch => Segment::of(newer, switch, bytes),
                _ => next,
            };
        }
        newer = Some((ancestor, begin));
    }
    Segment::of(timeline, slot, bytes)
}

type Upload<'a> = Pin<Box<dyn Future<Output = Result<Lsn, BackupError>> + Send + 'a>>;

struct Session<'a> {
    repo: &'a Repository,
    options: &'a ReceiveOptions,
    status: &'a watch::Sender<ReceiveStatus>,
    stop: &'a CancellationToken,
    system_id: u64,
    rooms: Arc<Rooms>,
}

/// The segment that arrives now.
struct Current {
    segment: Segment,
    data: Vec<u8>,
    /// Of `data`, what is or will be in the repository as parts.
    flushed: usize,
}

impl<'a> Session<'a> {
    /// One connection, over as many timelines as the server has. What lies before `skip_to` is lost.
    async fn run(&mut self, skip_to: Option<Lsn>) -> Result<(), BackupError> {
        let mut connection = RawConnection::connect_replication(&self.options.params, CONNECT).await?;
        let identity = connection.identify_system().await?;
        self.system_id = identity.system_id;
        let segment_bytes = segment_bytes(&mut connection).await?;
        archive::begin(self.repo, self.system_id, segment_bytes).await?;
        let mut inventory = inventory(self.repo, self.system_id).await?;
        let history = self.history(&mut connection, &inventory, identity.timeline).await?;
        let slot = self.slot(&mut connection).await?;
        let mut next = beginning(&inventory, identity.timeline, &history, slot);
        if let Some(kept) = skip_to {
            // a slot goes back to whatever position is acknowledged, and that may have been the lost one
            next = Segment::of(identity.timeline, slot.max(kept), segment_bytes);
        }
        loop {
            let from = next.start(segment_bytes);
            let wanted = PhysicalOptions { slot: &self.options.slot, from, timeline: next.timeline };
            // the server may notice only when it reads the file, after the stream has begun
            let lost = |error: BackupError| match &error {
                // "requested WAL segment … has already been removed"
                BackupError::Sql(sql) if sql.sqlstate() == Some("58P01") => BackupError::WalLost { from, to: slot },
                _ => error,
            };
            let started = connection.start_physical(&wanted, COMMAND).await.map_err(|error| lost(error.into()))?;
            let switch = match started {
                PhysicalStart::Ended(open, switch) => {
                    connection = open;
                    switch
                }
                PhysicalStart::Streaming(stream) => {
                    self.status.send_modify(|now| {
                        *now = ReceiveStatus { connected: true, timeline: next.timeline, durable: from, ..now.clone() };
                        now.failing = None;
                    });
                    tracing::info!(timeline = next.timeline, %from, "receiving the log");
                    match self.stream(stream, next, &inventory).await.map_err(lost)? {
                        None => return Ok(()),
                        Some((open, switch)) => {
                            connection = open;
                            switch
                        }
                    }
                }
            };
            tracing::info!(timeline = switch.timeline, switch = %switch.switch, "the log goes on on another timeline");
            inventory = archive::inventory(self.repo, self.system_id).await?;
            self.history(&mut connection, &inventory, switch.timeline).await?;
            next = Segment::of(switch.timeline, switch.switch, segment_bytes);
        }
    }

    /// The history of a timeline, which is kept in the repository before its log.
    async fn history(
        &self,
        connection: &mut RawConnection,
        inventory: &Inventory,
        timeline: u32,
    ) -> Result<History, BackupError> {
        if timeline == 1 {
            return Ok(History::default());
        }
        let (_, content) = connection.timeline_history(timeline).await?;
        let history = History::parse(&content).map_err(|error| PgError::Protocol(error.to_string()))?;
        put_history(self.repo, inventory, self.system_id, timeline, content).await?;
        Ok(history)
    }

    /// Where the slot keeps log from; it is made if it is not there.
    async fn slot(&self, connection: &mut RawConnection) -> Result<Lsn, BackupError> {
        let name = millrace_base::ident::Literal(&self.options.slot).to_string();
        let sql = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = {name}");
        let mut rows = connection.query(&sql, COMMAND).await?;
        if rows.is_empty() {
            let make = format!("SELECT lsn FROM pg_create_physical_replication_slot({name}, true)");
            rows = connection.query(&make, COMMAND).await?;
        }
        let lsn = rows.into_iter().flatten().flatten().next().and_then(|lsn| lsn.parse().ok());
        lsn.ok_or_else(|| {
            BackupError::Unfit(format!(
                "slot {} keeps no log: it was made without reserving any, or is lost; drop it",
                self.options.slot
            ))
        })
    }

    /// Streams one timeline to its end. `None`: told to stop, or the server stops.
    async fn stream(
        &self,
        mut stream: PhysicalStream,
        first: Segment,
        inventory: &Inventory,
    ) -> Result<Option<(RawConnection, millrace_pg::replication::NextTimeline)>, BackupError> {
        let bytes = usize::try_from(inventory.segment_bytes).unwrap_or(usize::MAX);
        let known = |segment| usize::try_from(inventory.beginning(segment).1).unwrap_or(0);
        let mut current = Current { segment: first, data: Vec::with_capacity(bytes), flushed: known(first) };
        let mut uploads: FuturesOrdered<Upload<'_>> = FuturesOrdered::new();
        let mut durable = first.start(inventory.segment_bytes);
        let mut flush = tokio::time::interval(self.options.flush_every);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut heard, mut replied) = (Instant::now(), Instant::now());
        let mut ended = false;
        loop {
            if !ended {
                // before anything is waited for: the first of it came together with the answer to the start
                ended = self.take_arrived(&mut stream, &mut current, &mut uploads, inventory, durable).await?;
            }
            if ended && uploads.is_empty() && current.data.len() <= current.flushed {
                self.acknowledge(&mut stream, durable).await?;
                let (connection, next) = stream.finish(COMMAND).await?;
                return Ok(next.map(|next| (connection, next)));
            }
            let room = uploads.len() < self.options.uploads_max.max(1);
            // `fill` and `next` lose nothing when they are dropped; a tick that is dropped comes again
            tokio::select! {
                () = self.stop.cancelled(), if !ended => {
                    // what has arrived is kept, then the stream is left
                    self.flush_part(&mut current, &mut uploads, inventory);
                    while let Some(done) = uploads.next().await {
                        durable = done?;
                        self.acknowledge(&mut stream, durable).await?;
                    }
                    return Ok(None);
                }
                Some(done) = uploads.next(), if !uploads.is_empty() => {
                    durable = done?;
                    self.acknowledge(&mut stream, durable).await?;
                    replied = Instant::now();
                }
                _ = flush.tick() => {
                    if uploads.is_empty() {
                        self.flush_part(&mut current, &mut uploads, inventory);
                    }
                    if replied.elapsed() >= REPLY_EVERY {
                        self.acknowledge(&mut stream, durable).await?;
                        replied = Instant::now();
                    }
                    if room && heard.elapsed() > SILENCE_MAX {
                        let address = self.options.params.address();
                        return Err(PgError::Timeout { address, deadline: SILENCE_MAX }.into());
                    }
                }
                filled = stream.fill(), if room && !ended => {
                    filled?;
                    heard = Instant::now();
                }
            }
        }
    }

    /// Takes what has arrived, as far as there is room for it; says whether the timeline has ended with it.
    async fn take_arrived(
        &self,
        stream: &mut PhysicalStream,
        current: &mut Current,
        uploads: &mut FuturesOrdered<Upload<'a>>,
        inventory: &Inventory,
        durable: Lsn,
    ) -> Result<bool, BackupError> {
        while uploads.len() < self.options.uploads_max.max(1) {
            match stream.buffered()? {
                Some(PhysicalItem::End) => {
                    self.flush_part(current, uploads, inventory);
                    return Ok(true);
                }
                Some(PhysicalItem::Message(message)) => {
                    if self.take(&message, current, uploads, inventory)? {
                        self.acknowledge(stream, durable).await?;
                    }
                }
                None => break,
            }
        }
        Ok(false)
    }

    /// Takes one message; says whether the server wants an answer.
    fn take(
        &self,
        message: &[u8],
        current: &mut Current,
        uploads: &mut FuturesOrdered<Upload<'a>>,
        inventory: &Inventory,
    ) -> Result<bool, BackupError> {
        let frame = Frame::decode(message).map_err(|error| PgError::Protocol(error.to_string()))?;
        match frame {
            Frame::Keepalive { server_end, reply_requested, .. } => {
                self.status.send_modify(|now| now.server = server_end);
                Ok(reply_requested)
            }
            Frame::XLogData { start, server_end, mut payload, .. } => {
                let segment_bytes = usize::try_from(inventory.segment_bytes).unwrap_or(usize::MAX);
                let mut at = start;
                while !payload.is_empty() {
                    let place = Lsn(current.segment.start(inventory.segment_bytes).0 + lsn_len(current.data.len()));
                    if at != place {
                        return Err(PgError::Protocol(format!("log of {at} where {place} is due")).into());
                    }
                    let (now, later) = payload.split_at(payload.len().min(segment_bytes - current.data.len()));
                    current.data.extend_from_slice(now);
                    at = Lsn(at.0 + lsn_len(now.len()));
                    payload = later;
                    if current.data.len() == segment_bytes {
                        self.finish_segment(current, uploads, inventory)?;
                    }
                }
                self.status.send_modify(|now| (now.server, now.received) = (server_end, at));
                Ok(false)
            }
        }
    }

    fn finish_segment(
        &self,
        current: &mut Current,
        uploads: &mut FuturesOrdered<Upload<'a>>,
        inventory: &Inventory,
    ) -> Result<(), BackupError> {
        let next = current.segment.next();
        let fresh = self.rooms.content(current.data.len());
        let (segment, had_parts) = (current.segment, current.flushed > 0);
        let data = Arc::new(std::mem::replace(&mut current.data, fresh));
        *current = Current { segment: next, data: std::mem::take(&mut current.data), flushed: 0 };
        let name = segment.file_name(inventory.segment_bytes);
        let end = segment.end(inventory.segment_bytes);
        if let Some(stored) = inventory.segments.get(&segment) {
            if stored.content_hash != archive::short_hash(&data) {
                return Err(BackupError::WalConflict { name });
            }
            uploads.push_back(Box::pin(async move { Ok(end) }));
            return Ok(());
        }
        let (repo, rooms, of) = (self.repo, self.rooms.clone(), (segment.timeline, self.system_id));
        let (system_id, status, stop) = (self.system_id, self.status, self.stop);
        let pace = match status.borrow().server.bytes_since(end) > BEHIND_BYTES {
            true => Pace::Behind,
            false => Pace::Usual,
        };
        uploads.push_back(Box::pin(async move {
            patiently(status, stop, || archive::put(repo, &rooms, of, &name, (data.clone(), pace))).await?;
            rooms.give_back(data);
            if !had_parts {
                return Ok(end);
            }
            // the whole is durable: its parts are of no more use
            let parts = format!("{}/{:08X}/{name}.partial", archive::folder(system_id), segment.timeline);
            patiently(status, stop, || async {
                for part in repo.list(&parts).await? {
                    repo.delete(&part.name).await?;
                }
                Ok(())
            })
            .await?;
            Ok(end)
        }));
        Ok(())
    }

    /// Uploads what of the unfinished segment has arrived since the last time.
    fn flush_part(&self, current: &mut Current, uploads: &mut FuturesOrdered<Upload<'a>>, inventory: &Inventory) {
        let Some(fresh) = current.data.get(current.flushed..).filter(|fresh| !fresh.is_empty()) else { return };
        let (from, to) = (current.flushed, current.data.len());
        let content = Arc::new(fresh.to_vec());
        let segment = current.segment;
        let what = format!("{}.partial/{from:08X}-{to:08X}", segment.file_name(inventory.segment_bytes));
        let end = Lsn(segment.start(inventory.segment_bytes).0 + lsn_len(to));
        current.flushed = to;
        let (repo, rooms, of) = (self.repo, self.rooms.clone(), (segment.timeline, self.system_id));
        let (status, stop) = (self.status, self.stop);
        uploads.push_back(Box::pin(async move {
            patiently(status, stop, || archive::put(repo, &rooms, of, &what, (content.clone(), Pace::Usual))).await?;
            Ok(end)
        }));
    }

    async fn acknowledge(&self, stream: &mut PhysicalStream, durable: Lsn) -> Result<(), BackupError> {
        let mut written = durable;
        self.status.send_modify(|now| {
            now.durable = durable;
            written = now.received.max(durable);
        });
        let status = StandbyStatus {
            written,
            flushed: durable,
            // nobody reads from an archive: no commit may wait for it to apply
            applied: Lsn::INVALID,
            sent_at: SystemClock::new().wall(),
            reply_requested: true,
        };
        Ok(stream.send_status(&status, COMMAND).await?)
    }
}

fn lsn_len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Does something with the repository until it succeeds; a failure that may pass is told and waited out. A stop ends
/// the waiting, not an attempt that runs.
async fn patiently<F>(
    status: &watch::Sender<ReceiveStatus>,
    stop: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<(), BackupError>
where
    F: Future<Output = Result<(), BackupError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        match attempt().await {
            Ok(()) => {
                if backoff.tries() > 0 {
                    tracing::info!("the repository takes the log again");
                    status.send_modify(|now| now.failing = None);
                }
                return Ok(());
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, tries = backoff.tries(), "the repository does not take the log");
                status.send_modify(|now| now.failing = Some(error.to_string()));
                tokio::select! {
                    () = stop.cancelled() => return Err(BackupError::Cancelled),
                    () = tokio::time::sleep(backoff.next_delay()) => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
}

async fn segment_bytes(connection: &mut RawConnection) -> Result<u64, BackupError> {
    let sql = "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'";
    let rows = connection.query(sql, COMMAND).await?;
    let bytes = rows.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok());
    bytes
        .filter(|bytes: &u64| bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(bytes))
        .ok_or_else(|| PgError::Protocol("wal_segment_size is none".to_owned()).into())
}

#[cfg(test)]
mod tests {
    use millrace_base::Micros;

    use super::*;
    use crate::repo::Listed;

    const MIB16: u64 = 16 << 20;

    fn archived(segments: &[(u32, u64)]) -> Inventory {
        let hash = "a".repeat(32);
        let listed = |(timeline, number): &(u32, u64)| {
            let name = Segment { timeline: *timeline, number: *number }.file_name(MIB16);
            Listed { name: format!("7/wal/{timeline:08X}/{name}.{hash}.{hash}.zst"), bytes: 1, written: Micros(0) }
        };
        Inventory::from_listing(MIB16, &segments.iter().map(listed).collect::<Vec<_>>())
    }

    #[test]
    fn begins_where_the_archive_ends() {
        let none = History::default();
        let at = |timeline, number| Segment { timeline, number };
        assert_eq!(beginning(&archived(&[]), 1, &none, Lsn(3 * MIB16 + 5)), at(1, 3));
        assert_eq!(beginning(&archived(&[(1, 3), (1, 4)]), 1, &none, Lsn(MIB16)), at(1, 5));

        // promoted in the midst of segment 5
        let history = History::parse(&format!("1\t{}\tx\n", Lsn(5 * MIB16 + 77))).unwrap();
        assert_eq!(beginning(&archived(&[(1, 4)]), 2, &history, Lsn(5 * MIB16)), at(1, 5), "the rest of the old one");
        assert_eq!(beginning(&archived(&[(1, 5)]), 2, &history, Lsn(5 * MIB16)), at(2, 5), "the old one went further");
        assert_eq!(beginning(&archived(&[(1, 5), (2, 5)]), 2, &history, Lsn(5 * MIB16)), at(2, 6));
        assert_eq!(beginning(&archived(&[]), 2, &history, Lsn(5 * MIB16)), at(2, 5));
    }
}
