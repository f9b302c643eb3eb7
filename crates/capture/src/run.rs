//! Sessions, one after the other: connect, check, copy if need be, stream. What goes wrong ends a
//! session; what follows depends on the cause: a table is quarantined, the next session begins at
//! the watermark after a while, or capture stops.
//!
//! A table that the sink cannot store: the open batch is forgotten, the quarantine made durable, and
//! the server asked to stream from the watermark again. It still has everything, since it heard of
//! nothing later, so no batch has to be kept for a second try.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use millrace_base::{Backoff, Clock, Tasks, clock::Micros};
use millrace_contract::{
    BatchEnd, RunKind, Sink, SinkError, TableName,
    sink::Resume,
    status::{CaptureState, CaptureStatus},
};
use millrace_pg::{
    Connection, connect,
    replication::{RawConnection, StreamOptions},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    apply::{Applier, Batches},
    assemble::Assembler,
    copy::{self, Snapshot},
    error::{CaptureError, Next},
    options::{CaptureOptions, Command},
    progress::Progress,
    reader::{Durable, Reader, ReaderState},
    schema, source,
    spill::Spills,
};

/// SQLSTATE `undefined_object`: here, the slot.
const UNDEFINED_OBJECT: &str = "42704";
const CONNECT: Duration = Duration::from_secs(15);
/// Making the slot waits for every transaction that is open on the source.
const SLOT: Duration = Duration::from_secs(300);
/// Steps on their way to the sink.
const EVENTS: usize = 4;
/// How often what is shown grows older, whatever the sink does.
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// A session that lasted this long was a success.
const LASTED: Duration = Duration::from_secs(10);

/// The reason of a quarantine that capture itself ends, whatever becomes of the process.
const COPIED_ANEW: &str = "it was altered, or not published for a while, and is being copied anew";

/// Whether a table is quarantined because it left the publication: it is copied anew when it is back.
pub(crate) fn has_left(table: &TableName, reason: &str) -> bool {
    reason.starts_with(&format!("table {table} left publication "))
}

/// Captures until `token` is cancelled (`Ok`) or a person must act.
///
/// # Errors
/// What a person must act on; [`CaptureError::hint`] says how. The status then is
/// [`CaptureState::Stopped`]. Everything else is tried again.
pub async fn run<S: Sink>(
    mut options: CaptureOptions,
    sink: S,
    mut commands: mpsc::Receiver<Command>,
    status: watch::Sender<CaptureStatus>,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
) -> Result<(), CaptureError> {
    let progress = Arc::new(Progress::new(clock, status));
    let mut batches = Batches::new(sink);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(3));
    let mut since: Option<Micros> = None;
    loop {
        let began = Instant::now();
        let Ok((now, term)) = options.now(&token).await else { return Ok(batches.give_up().await?) };
        let now = Arc::new(now);
        let ended =
            Box::pin(session(&now, (term, &mut options.added), &mut batches, &mut commands, &progress, &token)).await;
        let Err(error) = ended else { return Ok(()) };
        if token.is_cancelled() {
            return Ok(batches.give_up().await?);
        }
        let error = match recover(&mut batches, error).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        if began.elapsed() >= LASTED && !progress.is_refused() {
            backoff.reset();
            since = None;
        }
        let since = *since.get_or_insert_with(|| progress.clock().wall());
        let hint = error.hint();
        match error.next() {
            Next::Stop => {
                tracing::error!(error = %chain(&error), hint, "capture stopped");
                progress.state(CaptureState::Stopped { error: chain(&error), hint, since });
                return Err(error);
            }
            Next::Retry => {
                tracing::warn!(error = %chain(&error), "capture begins anew from its watermark");
                let refused = matches!(error, CaptureError::Sink(SinkError::Full(_) | SinkError::Retry(_)));
                progress.retries(chain(&error), hint, since, refused);
                tokio::select! {
                    () = sleep(backoff.next_delay()) => {}
                    () = token.cancelled() => return Ok(()),
                }
            }
        }
    }
}

/// Leaves no batch open, and quarantines the table that an error is about. `Err` gives back what
/// it could not deal with.
async fn recover<S: Sink>(batches: &mut Batches<S>, error: CaptureError) -> Result<(), CaptureError> {
    batches.give_up().await?;
    let reason = chain(&error);
    let table = match &error {
        CaptureError::Sink(SinkError::Table { table, reason }) => {
            let (table, reason) = (table.clone(), reason.clone());
            tracing::error!(%table, "a table cannot be applied and is quarantined");
            return Ok(batches.sink.quarantine(table, reason).await?);
        }
        CaptureError::Altered { table } | CaptureError::Sink(SinkError::Altered { table }) => {
            tracing::info!(%table, "a table was altered and is copied anew");
            return Ok(batches.sink.quarantine(table.clone(), COPIED_ANEW.to_owned()).await?);
        }
        CaptureError::TableLeft { table, .. } | CaptureError::NoKey { table, .. } => table.clone(),
        _ => return Err(error),
    };
    if batches.sink.resume().await?.tables.contains(&table) {
        tracing::error!(%table, reason, "a table cannot be streamed and is quarantined");
        batches.sink.quarantine(table, reason).await?;
        return Ok(());
    }
    // never copied: the caller wants what cannot be
    Err(match error {
        CaptureError::TableLeft { table, publication } => {
            CaptureError::Publication { publication, what: format!("does not have table {table}") }
        }
        other => other,
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Tables whose older rows may differ now from what the sink holds, by the columns of then and now.
async fn altered_while_away(
    options: &CaptureOptions,
    catalog: &Connection,
    resume: &Resume,
) -> Result<Vec<TableName>, CaptureError> {
    // one that is gone, or not published any more, is dealt with where that is told
    let published = source::published(catalog, &options.publication).await?;
    let held: Vec<_> = resume
        .schemas
        .iter()
        .filter(|s| {
            let wanted = options.tables.contains(&s.table) && published.contains_key(&s.table);
            wanted && !resume.quarantined.contains_key(&s.table)
        })
        .collect();
    let names: Vec<_> = held.iter().map(|s| s.table.clone()).collect();
    let described = source::describe(catalog, &names).await?;
    let mut altered = Vec::new();
    for old in held {
        let Some(now) = described.values().find(|d| d.table == old.table) else { continue };
        let new = now.schema(catalog).await?;
        if schema::is_stale(catalog, old, &new).await? {
            altered.push(old.table.clone());
        }
    }
    Ok(altered)
}

/// From connecting to whatever ends it. `Ok`: the token was cancelled. `added` is emptied once the sink knows of it: the
/// next session need not copy those tables again.
async fn session<S: Sink>(
    options: &Arc<CaptureOptions>,
    (term, added): (u64, &mut Vec<TableName>),
    batches: &mut Batches<S>,
    commands: &mut mpsc::Receiver<Command>,
    progress: &Arc<Progress>,
    token: &CancellationToken,
) -> Result<(), CaptureError> {
    let mut resume = batches.sink.resume().await?;
    let mut replication = RawConnection::connect_replication(&options.source, CONNECT).await?;
    let identity = replication.identify_system().await?;
    source::check_identity(&identity, resume.system_id)?;
    batches.loaded_from(identity.system_id);
    let catalog = Arc::new(connect(&options.source, CONNECT).await?);
    source::check_server(&catalog, options).await?;

    if !resume.watermark.is_valid() {
        initial_copy(options, term, batches, &resume, &mut replication, &catalog, progress, token).await?;
        progress.made_durable();
        added.clear();
        resume = batches.sink.resume().await?;
    } else {
        let slot = source::slot(&catalog, &options.slot).await?;
        let none = || CaptureError::NoSlot { slot: options.slot.clone(), watermark: resume.watermark };
        let slot = slot.ok_or_else(none)?;
        slot.check_ours(options)?;
        slot.check_position(options, resume.watermark)?;
        for table in added.iter() {
            if resume.tables.contains(table) && !resume.quarantined.contains_key(table) {
                batches.sink.quarantine(table.clone(), COPIED_ANEW.to_owned()).await?;
                resume.quarantined.insert(table.clone(), COPIED_ANEW.to_owned());
            }
        }
        added.clear();
        for table in altered_while_away(options, &catalog, &resume).await? {
            tracing::info!(%table, "a table was altered while capture was away and is copied anew");
            batches.sink.quarantine(table.clone(), COPIED_ANEW.to_owned()).await?;
            resume.quarantined.insert(table, COPIED_ANEW.to_owned());
        }
    }
    let memberships = published_or_quarantined(options, &catalog, &resume).await?;
    let quarantined = resume.quarantined.iter().map(|(t, r)| (t.to_string(), r.clone())).collect();
    progress.resumed(resume.watermark, quarantined);
    progress.heard(identity.position);

    let from = resume.watermark;
    let stream = StreamOptions { slot: &options.slot, from, publication: &options.publication };
    let stream = match replication.start_logical(&stream, CONNECT).await {
        // it was dropped since it was looked at
        Err(error) if error.sqlstate() == Some(UNDEFINED_OBJECT) => {
            return Err(CaptureError::NoSlot { slot: options.slot.clone(), watermark: from });
        }
        started => started?,
    };
    progress.streams();

    let missing: VecDeque<TableName> = options
        .tables
        .iter()
        .filter(|t| match resume.quarantined.get(t) {
            Some(reason) => reason == COPIED_ANEW || (has_left(t, reason) && memberships.contains_key(t)),
            None => !resume.tables.contains(t),
        })
        .cloned()
        .collect();
    let away = resume.quarantined.iter().filter(|(t, reason)| has_left(t, reason) && !memberships.contains_key(t));
    let away: Vec<_> = away.map(|(t, _)| t.clone()).collect();
    let skipped: BTreeSet<_> = resume.quarantined.keys().chain(&missing).cloned().collect();
    let wanted: BTreeSet<_> = options.tables.iter().cloned().collect();
    let mut assembler = Assembler::new(wanted, skipped, options.step_bytes);
    // the columns that the sink holds, so that a change of them is noticed even before the first row
    for schema in &resume.schemas {
        if memberships.contains_key(&schema.table) && !resume.quarantined.contains_key(&schema.table) {
            assembler.relation(schema.clone());
        }
    }
    let (events, from_reader) = mpsc::channel(EVENTS);
    let (control, to_reader) = mpsc::channel(2);
    let (durable, watch_durable) = watch::channel(Durable { watermark: from, count: 0 });
    let reader = Reader {
        stream,
        catalog: catalog.clone(),
        options: options.clone(),
        progress: progress.clone(),
        assembler,
        spills: Spills::new(options.spill_folder.clone())?,
        events,
        control: to_reader,
        durable: watch_durable,
        state: ReaderState::new(from, options.batch_age),
    };
    // dropped with the session: the reader never outlives it
    let mut tasks = Tasks::new(token.child_token());
    tasks.spawn("capture reader", reader.run());
    let ageing = progress.clone();
    tasks.spawn("capture status", async move {
        let mut tick = interval(STATUS_EVERY);
        loop {
            tick.tick().await;
            ageing.tick();
        }
        #[expect(unreachable_code, reason = "gives the task its type; it ends with the session")]
        Ok::<(), CaptureError>(())
    });
    let applier = Applier {
        batches,
        options: options.clone(),
        term,
        progress: progress.clone(),
        catalog,
        events: from_reader,
        control,
        durable,
        memberships,
        missing,
        missing_from: Instant::now(),
        left: away,
        quarantined: resume.quarantined.keys().cloned().collect(),
        token: token.clone(),
    };
    applier.run(commands).await
}

/// Every wanted table's place in the publication; those that are quarantined anyway may be out.
async fn published_or_quarantined(
    options: &CaptureOptions,
    catalog: &tokio_postgres::Client,
    resume: &Resume,
) -> Result<std::collections::BTreeMap<TableName, source::Membership>, CaptureError> {
    let mut published = source::published(catalog, &options.publication).await?;
    for table in published.keys().filter(|t| !options.tables.contains(t)) {
        tracing::warn!(%table, publication = options.publication, "a table is published that no one wants");
    }
    published.retain(|table, membership| options.tables.contains(table) && !membership.partial);
    let out = options.tables.iter().find(|t| !published.contains_key(t) && !resume.quarantined.contains_key(t));
    match out {
        Some(table) => Err(CaptureError::TableLeft { table: table.clone(), publication: options.publication.clone() }),
        None => Ok(published),
    }
}

/// Makes the slot and copies every table as of its consistent point.
///
/// A slot that is there already is what an earlier try left: its snapshot is gone, and the sink has
/// nothing from it.
async fn initial_copy<S: Sink>(
    options: &Arc<CaptureOptions>,
    term: u64,
    batches: &mut Batches<S>,
    resume: &Resume,
    replication: &mut RawConnection,
    catalog: &tokio_postgres::Client,
    progress: &Arc<Progress>,
    token: &CancellationToken,
) -> Result<(), CaptureError> {
    published_or_quarantined(options, catalog, resume).await?;
    if let Some(slot) = source::slot(catalog, &options.slot).await? {
        slot.check_ours(options)?;
        tracing::info!(slot = options.slot, "the slot of an unfinished copy is dropped");
        replication.drop_slot(&options.slot).await?;
    }
    let tables: Vec<_> = options.tables.iter().filter(|t| !resume.quarantined.contains_key(t)).cloned().collect();
    progress.state(CaptureState::Copying { tables_done: 0, tables: tables.len(), rows: 0 });
    let slot = tokio::select! {
        slot = replication.create_logical_slot(&options.slot, false, SLOT) => slot?,
        // the connection goes with the session, and the unfinished slot with it
        () = token.cancelled() => return Err(CaptureError::Interrupted),
    };
    let taken_at = progress.clock().wall();
    let snapshot = Snapshot { name: slot.snapshot, lsn: slot.consistent_point, taken_at };
    tracing::info!(lsn = %snapshot.lsn, tables = tables.len(), "the first copy begins");
    let end = BatchEnd { watermark: snapshot.lsn, commit_time: taken_at, transactions: 0 };
    if tables.is_empty() {
        batches.begin(RunKind::InitialCopy).await?;
        batches.commit(end).await?;
        return Ok(());
    }
    let copy = copy::start(options, &tables, snapshot, progress.clone()).await?;
    let applied = batches.write_copy(RunKind::InitialCopy, copy, end, (options, term), token).await?;
    tracing::info!(rows = applied.rows_inserted, duration_ms = applied.duration_ms, "the first copy is done");
    Ok(())
}
