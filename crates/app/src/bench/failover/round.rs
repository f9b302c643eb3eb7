//! One round: a whole cluster, a writer, a fault, and afterwards an account of every acknowledged row.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use millrace_pg::{ConnectParams, connect};
use rustix::process::Signal;

use super::{
    processes,
    writer::{CONNECT_MAX, Log, Writer},
};
use crate::{cli::Fault, explain::Explained};

/// Of the application.
pub(super) const CONNECTIONS: usize = 4;
/// Writes that are not back by then are a failure.
pub(super) const BACK_MAX: Duration = Duration::from_secs(90);
/// How long the application and a client of the old primary write on after a thaw.
const AFTER_THAW: Duration = Duration::from_secs(3);
const WHOLE_MAX: Duration = Duration::from_secs(180);
const SAME_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Ids of those who write to the thawed primary itself.
const DIRECT: i64 = 1 << 40;

/// A PostgreSQL server of a cluster, as the cluster itself describes it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) primary: bool,
    /// Runs; a replica streams and is hardly behind.
    pub(super) well: bool,
    /// The superuser on the database that is written to.
    pub(super) admin: ConnectParams,
    pub(super) data: PathBuf,
    /// Its guardian, if it dies and freezes with the host.
    pub(super) agent: Option<u32>,
}

/// Three servers behind an entry that leads to the primary.
pub(super) trait Cluster {
    /// For the reader.
    fn name(&self) -> &str;
    /// Where applications write.
    fn entry(&self) -> &ConnectParams;
    /// The cluster's own opinion; an error if it has none now.
    async fn members(&mut self) -> anyhow::Result<Vec<Member>>;
    /// The command for a planned change of the primary, until it returns.
    async fn switch_over(&mut self) -> anyhow::Result<()>;
    /// Brings back what the fault took with the host.
    fn revive(&mut self, member: &Member) -> anyhow::Result<()>;
}

/// What a round found.
#[derive(Debug)]
pub(super) struct Round {
    /// Longest time without an acknowledgement, from the last one before the fault.
    pub(super) gap: Duration,
    pub(super) failed: usize,
    pub(super) refused: usize,
    pub(super) acknowledged: usize,
    /// Acknowledged through the entry and not there any more.
    pub(super) lost: usize,
    /// Acknowledged by the thawed old primary to a client of its own, and not there any more.
    pub(super) lost_direct: usize,
    /// What must not be.
    pub(super) problems: Vec<String>,
    /// The first error that the application saw.
    pub(super) error: Option<String>,
}

/// Waits for all three to be well with one primary, and returns them, the primary first.
pub(super) async fn whole(cluster: &mut impl Cluster) -> anyhow::Result<(Member, Vec<Member>)> {
    let deadline = Instant::now() + WHOLE_MAX;
    loop {
        let found = cluster.members().await;
        if let Ok(members) = &found
            && members.len() == 3
            && members.iter().all(|member| member.well)
            && let [primary] = members.iter().filter(|member| member.primary).collect::<Vec<_>>().as_slice()
        {
            let replicas = members.iter().filter(|member| !member.primary).cloned().collect();
            return Ok(((*primary).clone(), replicas));
        }
        if Instant::now() > deadline {
            let state = found.map(|members| {
                let one = |member: &Member| {
                    let role = if member.primary { "primary" } else { "replica" };
                    format!("{} {role}{}", member.name, if member.well { "" } else { " (not well)" })
                };
                members.iter().map(one).collect::<Vec<_>>().join(", ")
            });
            bail!(
                "{} is not whole {} s after a round: {}",
                cluster.name(),
                WHOLE_MAX.as_secs(),
                state.unwrap_or_else(|error| error.to_string())
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Runs a round.
///
/// # Errors
/// If the cluster is not whole before or after it, or cannot be asked.
pub(super) async fn run(cluster: &mut impl Cluster, fault: Fault) -> anyhow::Result<Round> {
    let (primary, _) = whole(cluster).await?;
    let admin = connect(&primary.admin, CONNECT_MAX).await.explained()?;
    admin.batch_execute("TRUNCATE bench_writes").await.context("cannot empty the table of a round")?;
    drop(admin);
    let writer = Writer::start(cluster.entry(), CONNECTIONS, 1);
    writer.steady().await.with_context(|| format!("before a round on {}", cluster.name()))?;

    let struck = Instant::now();
    let frozen = strike(cluster, &primary, fault).await?;
    let done = Instant::now();
    let back = writer.back(done, BACK_MAX).await;
    let observed = Instant::now();
    let mut problems = Vec::new();
    if !back {
        problems.push(format!("was not writable again after {} s", (observed - struck).as_secs()));
    }
    // clients of the old primary wait before it, as clients of a frozen host do
    let direct = (!frozen.is_empty()).then(|| Writer::start(&primary.admin, 1, DIRECT));
    if direct.is_some() {
        tokio::time::sleep(POLL).await;
    }
    processes::signal(&frozen, Signal::CONT);
    if direct.is_some() {
        tokio::time::sleep(AFTER_THAW).await;
    }
    cluster.revive(&primary)?;
    let log = writer.stop().await;
    let direct = match direct {
        Some(writer) => writer.stop().await,
        None => Log::default(),
    };

    let (now, replicas) = whole(cluster).await?;
    problems.extend(only_one_writable(&now, &replicas).await?);
    let held = held(&now).await?;
    if held.len() != held.iter().collect::<HashSet<_>>().len() {
        problems.push("a row is there twice".to_owned());
    }
    problems.extend(same_everywhere(&now, &replicas, held.len()).await?);
    let held: HashSet<i64> = held.into_iter().collect();
    let lost = |log: &Log| log.acks.iter().filter(|ack| !held.contains(&ack.id)).count();
    let (lost, lost_direct) = (lost(&log), lost(&direct));
    let since = |list: &[(Instant, String)]| list.iter().filter(|(at, _)| *at >= struck).count();
    let silent = log.silent_since(done, CONNECTIONS);
    if back && silent > 0 {
        problems.push(format!("{silent} of {CONNECTIONS} connections never came back"));
    }
    Ok(Round {
        gap: log.longest_gap(struck, observed),
        failed: since(&log.failed),
        refused: since(&log.refused),
        acknowledged: log.acks.len(),
        lost,
        lost_direct,
        problems,
        error: log.failed.into_iter().find(|(at, _)| *at >= struck).map(|(_, text)| text),
    })
}

/// The fault, at once and all of it; returns who must be thawed.
async fn strike(cluster: &mut impl Cluster, primary: &Member, fault: Fault) -> anyhow::Result<Vec<u32>> {
    let postmaster =
        processes::postmaster(&primary.data).with_context(|| format!("{} has no postmaster", primary.name))?;
    match fault {
        Fault::Killed => {
            let all = freeze(primary, primary.agent, postmaster);
            processes::signal(&all, Signal::KILL);
        }
        Fault::ServerKilled => {
            let all = freeze(primary, None, postmaster);
            processes::signal(&all, Signal::KILL);
        }
        Fault::Postmaster => processes::signal(&[postmaster], Signal::KILL),
        Fault::Hung => return Ok(freeze(primary, primary.agent, postmaster)),
        Fault::ServerHung => return Ok(freeze(primary, None, postmaster)),
        Fault::Switchover => cluster.switch_over().await?,
    }
    Ok(Vec::new())
}

/// Stops who could start something first, then everything that works for it.
fn freeze(primary: &Member, agent: Option<u32>, postmaster: u32) -> Vec<u32> {
    let mut all: Vec<u32> = agent.into_iter().chain([postmaster]).collect();
    processes::signal(&all, Signal::STOP);
    let children: Vec<u32> =
        processes::working_in(&primary.data).into_iter().filter(|pid| !all.contains(pid)).collect();
    processes::signal(&children, Signal::STOP);
    all.extend(children);
    all
}

async fn only_one_writable(primary: &Member, replicas: &[Member]) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (member, expected) in [(primary, true)].into_iter().chain(replicas.iter().map(|member| (member, false))) {
        let admin = connect(&member.admin, CONNECT_MAX).await.explained()?;
        let writable: bool = admin.query_one("SELECT NOT pg_is_in_recovery()", &[]).await?.try_get(0)?;
        if writable != expected {
            problems.push(format!("{} is {}a primary", member.name, if expected { "not " } else { "also " }));
        }
    }
    Ok(problems)
}

/// Every id on the primary, from the table and not from its index.
async fn held(primary: &Member) -> anyhow::Result<Vec<i64>> {
    let admin = connect(&primary.admin, CONNECT_MAX).await.explained()?;
    admin
        .batch_execute("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off")
        .await?;
    let rows = admin.query("SELECT id FROM bench_writes", &[]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// Whether each replica gets to the primary's rows.
async fn same_everywhere(primary: &Member, replicas: &[Member], count: usize) -> anyhow::Result<Vec<String>> {
    const SUM: &str = "SELECT count(*) || ' rows, sum of ids ' || COALESCE(sum(id), 0) FROM bench_writes";
    let sum = async |member: &Member| -> anyhow::Result<String> {
        let admin = connect(&member.admin, CONNECT_MAX).await.explained()?;
        Ok(admin.query_one(SUM, &[]).await?.try_get(0)?)
    };
    let wanted = sum(primary).await?;
    let mut problems = Vec::new();
    if !wanted.starts_with(&format!("{count} rows")) {
        problems.push(format!("{} has {wanted} now, and had {count} rows", primary.name));
    }
    for replica in replicas {
        let deadline = Instant::now() + SAME_MAX;
        loop {
            let found = sum(replica).await;
            match found {
                Ok(found) if found == wanted => break,
                found if Instant::now() > deadline => {
                    let found = found.unwrap_or_else(|error| error.to_string());
                    problems.push(format!("{} has {wanted}, {} {found}", primary.name, replica.name));
                    break;
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
    Ok(problems)
}
