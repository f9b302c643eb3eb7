//! `millrace bench backup`: backups, the log's archive and restores beside pgBackRest, of one server, in turns.
//!
//! Both archive the same log all the time and back up the same pages. Ours is encrypted, pgBackRest's is not; both
//! compress with zstd at level 3, two at a time, and check the pages. What is restored is started and counted.

mod ours;
mod peer;

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use millrace_base::{Lsn, files};
use millrace_pg::{Connection, StopMode, connect};

use super::{
    Measured, ROUNDS,
    figure::{Figure, median},
    lab::{Lab, Server},
    pgbench::Programs,
    usage,
};
use crate::explain::Explained as _;
use ours::{OURS, Ours};
use peer::Peer;

const THREADS: usize = 2;
const LEVEL: i32 = 3;
/// Before an incremental backup: 20,000 transactions.
const CLIENTS: u32 = 4;
const EACH: u32 = 5_000;
/// Files of log that wait to be archived, of 16 MiB.
const LOG_FILES: u32 = 64;
const REPLAY_MAX: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(20);

/// One thing done once.
#[derive(Debug, Clone, Copy)]
struct Once {
    wall_s: f64,
    /// Of the tool and the server together.
    cpu_s: f64,
    /// What it added to the repository.
    stored_mb: f64,
}

/// All rounds of one thing, by both.
#[derive(Debug, Default)]
struct Both {
    ours: Vec<Once>,
    peer: Vec<Once>,
}

/// What is measured with.
struct Bed {
    server: Server,
    client: Connection,
    programs: Programs,
    address: SocketAddr,
    ours: Ours,
    peer: Peer,
}

pub(crate) async fn measure(lab: &mut Lab, scale: u32) -> anyhow::Result<Measured> {
    let sockets = lab.folder().join("sockets");
    files::create_dir_all(&sockets, 0o755)?;
    lab.run_as().own(&sockets)?;
    let sockets = sockets.to_str().context("the folder's name is no text")?.to_owned();
    let settings = [
        ("unix_socket_directories", sockets.as_str()),
        ("archive_mode", "on"),
        ("max_wal_size", "4GB"),
        ("autovacuum", "off"),
    ];
    let server = lab.server("server", &settings).await?;
    let data = lab.folder().join("server/data");
    let hba = data.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba)?;
    let open = "local all all scram-sha-256\nhost all,replication all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&hba, format!("{open}{rules}"))?;
    let client = server.connect("postgres").await?;
    client.batch_execute("CREATE DATABASE bench").await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    let address: SocketAddr = ([127, 0, 0, 1], server.admin.port).into();
    let passfile = lab.folder().join("bench.pgpass");
    let line = format!("*:*:*:postgres:{}\n", server.admin.password.reveal());
    files::write_atomic(&passfile, line.as_bytes(), 0o600)?;
    let programs = Programs { pgbench: lab.binaries().program("pgbench"), passfile };
    lab.note(format!("pgbench makes its tables, scale {scale}"));
    programs.initialize(address, scale).await?;
    client.batch_execute("CHECKPOINT").await?;

    let peer = Peer::new(lab, &server, &data, Path::new(&sockets)).await?;
    lab.versions.push(peer.version.clone());
    peer.archives(&client, true).await?;
    peer.create_stanza().await?;
    let ours = Ours::new(lab, &server, &data, &client).await?;
    let mut bed = Bed { server, client, programs, address, ours, peer };
    let mut rounds = Rounds::default();
    let mut worked = Ok(());
    for round in 0..ROUNDS {
        worked = bed.round(lab, round, &mut rounds).await;
        if worked.is_err() {
            break;
        }
    }
    bed.ours.pause().await?;
    worked?;
    Ok(rounds.told(scale, &bed.peer.version))
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Ours,
    Peer,
}

/// What a restore is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The files alone.
    Files,
    /// With all the log.
    Whole,
    /// The files alone, where a server of the same data was stopped.
    Over,
}

/// Each round begins with the other.
fn turns(round: usize) -> [Turn; 2] {
    if round.is_multiple_of(2) { [Turn::Ours, Turn::Peer] } else { [Turn::Peer, Turn::Ours] }
}

impl Both {
    fn push(&mut self, turn: Turn, once: Once) {
        match turn {
            Turn::Ours => self.ours.push(once),
            Turn::Peer => self.peer.push(once),
        }
    }

    fn figure(
        &self,
        what: &str,
        unit: &'static str,
        peer_name: &str,
        settings: &str,
        of: impl Fn(&Once) -> f64,
    ) -> Figure {
        let middle = |all: &[Once]| median(all.iter().map(&of).collect());
        Figure {
            what: what.to_owned(),
            unit,
            ours: middle(&self.ours),
            peer: Some(middle(&self.peer)),
            peer_name: peer_name.to_owned(),
            higher_is_better: false,
            settings: settings.to_owned(),
        }
    }
}

/// What has been used since a moment.
struct Meter {
    begun: Instant,
    cpu_s: f64,
    server: u32,
}

impl Meter {
    fn start(server: u32) -> Self {
        Self { begun: Instant::now(), cpu_s: Self::used(server), server }
    }

    fn used(server: u32) -> f64 {
        usage::own_cpu_s() + usage::programs_cpu_s() + usage::server_cpu_s(server)
    }

    fn stop(self, stored_mb: f64) -> Once {
        Once { wall_s: self.begun.elapsed().as_secs_f64(), cpu_s: Self::used(self.server) - self.cpu_s, stored_mb }
    }
}

/// All that is measured.
#[derive(Debug, Default)]
struct Rounds {
    full: Both,
    /// The peer is pg_basebackup.
    plain: Both,
    incremental: Both,
    log: Both,
    files: Both,
    open: Both,
    over: Both,
    differences: Vec<String>,
}

impl Rounds {
    fn told(self, scale: u32, peer: &str) -> Measured {
        let of = format!("pgbench, scale {scale}, median of {ROUNDS} in turns, {THREADS} at a time, zstd {LEVEL}");
        let both = format!("{of}; ours encrypted (age), pgBackRest bundled, not encrypted; pages checked by both");
        let mut figures = Vec::new();
        for (what, of) in [
            ("full backup", &self.full),
            ("incremental backup after 20,000 transactions", &self.incremental),
            ("restore of files", &self.files),
            ("restore, replay, open for writes", &self.open),
            ("restore of files over what is there (delta)", &self.over),
        ] {
            figures.push(of.figure(what, "s", peer, &both, |once| once.wall_s));
            figures.push(of.figure(&format!("{what}: processor time"), "cpu s", peer, &both, |once| once.cpu_s));
            if what.contains("backup") {
                figures.push(of.figure(&format!("{what}: stored"), "MB", peer, &both, |once| once.stored_mb));
            }
        }
        let settings = format!("{of}; pg_basebackup copies to the same disk, not compressed, without log");
        figures.push(self.plain.figure("full backup", "s", "pg_basebackup", &settings, |once| once.wall_s));
        let settings = format!(
            "{of}; {LOG_FILES} files of 16 MiB wait; pgBackRest's archiving is asynchronous; ours encrypted, and with zstd 1 \
             while more than 128 MiB wait"
        );
        let what = "log that waits is archived";
        figures.push(self.log.figure(what, "s", peer, &settings, |once| once.wall_s));
        figures.push(self.log.figure(&format!("{what}: stored"), "MB", peer, &settings, |once| once.stored_mb));
        Measured { figures, differences: self.differences }
    }
}

impl Bed {
    async fn round(&mut self, lab: &Lab, round: usize, rounds: &mut Rounds) -> anyhow::Result<()> {
        lab.note(format!("round {} of {ROUNDS}: full", round + 1));
        for turn in turns(round) {
            let once = self.back_up(turn, true).await?;
            rounds.full.push(turn, once);
            rounds.plain.ours.extend((turn == Turn::Ours).then_some(once));
        }
        self.rest().await?;
        let meter = Meter::start(self.server.pid);
        self.peer.base_backup(lab, &self.programs).await?;
        rounds.plain.peer.push(meter.stop(0.0));
        std::fs::remove_dir_all(lab.folder().join(peer::PLAIN))?;
        lab.note("incremental");
        self.programs.write(self.address, CLIENTS, EACH).await?;
        for turn in turns(round) {
            rounds.incremental.push(turn, self.back_up(turn, false).await?);
        }
        lab.note("restore");
        self.rest().await?;
        let truth = count(&self.server.connect("bench").await?).await?;
        for turn in turns(round) {
            self.restore(lab, turn, &truth, rounds).await?;
        }
        lab.note("log that waits");
        self.archive(lab, round, &mut rounds.log).await
    }

    /// Until neither has anything to do, and the next checkpoint has little.
    async fn rest(&mut self) -> anyhow::Result<()> {
        self.client.batch_execute("CHECKPOINT").await?;
        let end = switch(&self.client).await?;
        self.ours.durable(end).await?;
        self.peer.archived(&self.client, &end).await
    }

    async fn back_up(&mut self, turn: Turn, full: bool) -> anyhow::Result<Once> {
        self.rest().await?;
        let meter = Meter::start(self.server.pid);
        Ok(match turn {
            Turn::Ours => {
                let stored = self.ours.back_up(full).await?;
                meter.stop(stored)
            }
            Turn::Peer => {
                self.peer.back_up(full).await?;
                let once = meter.stop(0.0);
                Once { stored_mb: self.peer.stored_mb().await?, ..once }
            }
        })
    }

    /// Files alone; then all of it up to the newest commit, started; then files alone over that.
    async fn restore(&self, lab: &Lab, turn: Turn, truth: &[i64], rounds: &mut Rounds) -> anyhow::Result<()> {
        let place = lab.spec("restored", &[("archive_mode", "off"), ("max_wal_size", "4GB")])?;
        for how in [How::Files, How::Whole, How::Over] {
            if how != How::Over {
                files::create_dir_all(&place.folder, 0o755)?;
                lab.run_as().own(&place.folder).explained()?;
                warm(lab.folder())?;
            }
            let meter = Meter::start(self.server.pid);
            match turn {
                Turn::Ours => self.ours.restore(&place, lab, how).await?,
                Turn::Peer => self.peer.restore(&place.data_dir(), lab, how).await?,
            }
            match how {
                How::Files => rounds.files.push(turn, meter.stop(0.0)),
                How::Over => rounds.over.push(turn, meter.stop(0.0)),
                How::Whole => {
                    place.configure(None).explained()?;
                    let mut postmaster = place.start().await.explained()?;
                    let counted = self.opened(&mut postmaster, place.port).await;
                    let once = meter.stop(0.0);
                    postmaster.stop(StopMode::Fast, REPLAY_MAX).await.explained()?;
                    let counted = counted?;
                    rounds.open.push(turn, once);
                    if counted != truth {
                        rounds.differences.push(format!("restored, {turn:?}: {counted:?} instead of {truth:?}"));
                    }
                    continue;
                }
            }
            std::fs::remove_dir_all(&place.folder)?;
        }
        Ok(())
    }

    async fn opened(&self, postmaster: &mut millrace_pg::Postmaster, port: u16) -> anyhow::Result<Vec<i64>> {
        postmaster.ready(REPLAY_MAX).await.explained()?;
        let params = millrace_pg::ConnectParams { port, ..self.server.admin.to_database("bench") };
        let client = connect(&params, REPLAY_MAX).await.explained()?;
        let recovers = "SELECT pg_is_in_recovery()";
        while client.query_one(recovers, &[]).await?.get(0) {
            tokio::time::sleep(LOOK).await;
        }
        count(&client).await
    }

    /// Each brings the same files of log, which have waited, into its repository.
    async fn archive(&mut self, lab: &Lab, round: usize, log: &mut Both) -> anyhow::Result<()> {
        self.rest().await?;
        self.ours.pause().await?;
        self.peer.archives(&self.client, false).await?;
        let client = self.server.connect("bench").await?;
        client.batch_execute("CREATE TABLE log (line text)").await?;
        let begun = position(&client).await?;
        while position(&client).await?.0 < begun.0 + (u64::from(LOG_FILES) << 24) {
            let lines = "INSERT INTO log SELECT n || md5(n::text) FROM generate_series(1, 50000) AS n";
            client.batch_execute(lines).await?;
        }
        client.batch_execute("DROP TABLE log; CHECKPOINT").await?;
        let end = switch(&client).await?;
        for turn in turns(round) {
            let place = lab.folder().join(if turn == Turn::Ours { OURS } else { peer::REPO });
            let before = bytes_in(&place);
            let meter = Meter::start(self.server.pid);
            match turn {
                Turn::Ours => {
                    self.ours.go_on();
                    self.ours.durable(end).await?;
                }
                Turn::Peer => {
                    self.peer.archives(&self.client, true).await?;
                    // the archiver looks at once when a file is complete, else once a minute
                    self.client.batch_execute("SELECT pg_switch_wal()").await?;
                    self.peer.archived(&self.client, &end).await?;
                }
            }
            let once = meter.stop(0.0);
            #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
            let stored_mb = bytes_in(&place).saturating_sub(before) as f64 / 1e6;
            log.push(turn, Once { stored_mb, ..once });
        }
        Ok(())
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let files = walkdir::WalkDir::new(folder).into_iter().flatten().filter_map(|entry| entry.metadata().ok());
    files.filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

/// Fills as much of the page cache as a restore takes, and lets it go: where memory comes from the host on first use,
/// whoever comes first would pay for both.
fn warm(folder: &Path) -> anyhow::Result<()> {
    let (place, chunk) = (folder.join("warm"), vec![0; 1 << 20]);
    let mut file = std::fs::File::create(&place)?;
    for _ in 0..bytes_in(&folder.join("server/data")).div_ceil(1 << 20) {
        std::io::Write::write_all(&mut file, &chunk)?;
    }
    drop(file);
    Ok(std::fs::remove_file(place)?)
}

/// Ends a file of log; what comes before the position is in complete files.
async fn switch(client: &Connection) -> anyhow::Result<Lsn> {
    let sql = "SELECT pg_switch_wal()::text FROM pg_create_restore_point('bench')";
    Ok(client.query_one(sql, &[]).await?.get::<_, String>(0).parse()?)
}

async fn position(client: &Connection) -> anyhow::Result<Lsn> {
    let sql = "SELECT pg_current_wal_insert_lsn()::text";
    Ok(client.query_one(sql, &[]).await?.get::<_, String>(0).parse()?)
}

/// What must be the same in a restored cluster.
async fn count(client: &Connection) -> anyhow::Result<Vec<i64>> {
    let sql = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_accounts), \
               (SELECT count(*) FROM pgbench_history), (SELECT sum(tbalance) FROM pgbench_tellers)";
    let row = client.query_one(sql, &[]).await?;
    (0..4).map(|at| Ok(row.try_get(at)?)).collect()
}
