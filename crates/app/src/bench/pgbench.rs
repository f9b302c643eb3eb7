//! Runs pgbench and reads what it says.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use super::{figure::percentile, usage};

/// The greatest part of transactions whose latency is written down: more would load the client.
const SAMPLED: &str = "0.1";
const HOLD_MAX: Duration = Duration::from_secs(60);

/// What pgbench is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// `simple`, `extended` or `prepared`.
    pub(super) mode: &'static str,
    pub(super) clients: u32,
    pub(super) seconds: u32,
    /// A connection for each transaction.
    pub(super) connect_each: bool,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connect = if self.connect_each { ", connecting each time" } else { "" };
        write!(f, "{}, {} clients{connect}", self.mode, self.clients)
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) tps: f64,
    transactions: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// The pooler's; filled by who knows its process.
    pub(super) cpu_s: f64,
}

impl Run {
    pub(super) fn cpu_of_100k(&self) -> f64 {
        self.cpu_s / self.transactions * 100_000.0
    }
}

/// pgbench, and how it logs in.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) pgbench: PathBuf,
    pub(super) passfile: PathBuf,
}

impl Programs {
    fn command(&self, address: SocketAddr) -> Command {
        let mut command = Command::new(&self.pgbench);
        command
            .args(["--host", "127.0.0.1", "--username", "postgres", "--port", &address.port().to_string()])
            .env("PGPASSFILE", &self.passfile)
            .env("PGSSLMODE", "disable")
            .env("PGDATABASE", "bench")
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Makes its tables: 100,000 accounts, about 16 MB, each step of `scale`.
    pub(super) async fn initialize(&self, address: SocketAddr, scale: u32) -> anyhow::Result<()> {
        let made =
            self.command(address).args(["--initialize", "--quiet", "--scale", &scale.to_string()]).output().await;
        let made = made.context("cannot run pgbench\n  hint: apt install postgresql-contrib or postgresql-15")?;
        if !made.status.success() {
            bail!("pgbench --initialize: {}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(())
    }

    /// Runs so many of its usual transactions, which write.
    pub(super) async fn write(&self, address: SocketAddr, clients: u32, each: u32) -> anyhow::Result<()> {
        let mut command = self.command(address);
        command.args(["--no-vacuum", "--jobs", "2", "--client", &clients.to_string(), "--transactions"]);
        let output = command.arg(each.to_string()).output().await.context("cannot run pgbench")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let all = format!("number of transactions actually processed: {}/", clients * each);
        if !output.status.success() || !said.contains(&all) {
            bail!("pgbench: {}{said}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Runs a load; any failed transaction is an error.
    pub(super) async fn run(&self, address: SocketAddr, load: &Load) -> anyhow::Result<Run> {
        let folder = tempfile(self.passfile.parent().unwrap_or(Path::new(".")))?;
        let mut command = self.command(address);
        command.args(["--no-vacuum", "--select-only", "--protocol", load.mode, "--jobs", "2"]);
        command.args(["--client", &load.clients.to_string(), "--time", &load.seconds.to_string()]);
        command.args(["--log", "--sampling-rate", SAMPLED]).arg("--log-prefix").arg(folder.join("log"));
        if load.connect_each {
            command.arg("--connect");
        }
        let output = command.output().await.context("cannot run pgbench")?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("pgbench ({load}): {}{said}", String::from_utf8_lossy(&output.stderr));
        }
        let number = |label: &str| {
            let line = said.lines().find(|line| line.starts_with(label));
            let value = line.and_then(|line| line.get(label.len()..)?.split_whitespace().next()?.parse::<f64>().ok());
            value.with_context(|| format!("pgbench said no \"{label}\": {said}"))
        };
        let (tps, transactions) = (number("tps =")?, number("number of transactions actually processed:")?);
        if number("number of failed transactions:")? > 0.0 {
            bail!("transactions failed: {said}");
        }
        let mut latencies = latencies_ms(&folder)?;
        std::fs::remove_dir_all(&folder)?;
        let (p50_ms, p99_ms) = (percentile(&mut latencies, 50.0), percentile(&mut latencies, 99.0));
        Ok(Run { tps, transactions, p50_ms, p99_ms, cpu_s: f64::NAN })
    }

    /// Connects `clients` that do nothing, for as long as the value lives.
    pub(super) async fn hold(&self, address: SocketAddr, clients: u32, script: &Path) -> anyhow::Result<Child> {
        let mut command = self.command(address);
        command.args(["--no-vacuum", "--transactions", "1", "--client", &clients.to_string()]);
        command.arg("--file").arg(script).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("cannot run pgbench")?;
        let pid = child.id().context("pgbench has ended")?;
        let deadline = Instant::now() + HOLD_MAX;
        while established(pid, address.port()) < clients as usize {
            if Instant::now() > deadline {
                bail!("{clients} clients could not be connected to port {} in time", address.port());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // the last of them may still log in: they have when pgbench has nothing more to do
        loop {
            let before = usage::server_cpu_s(pid);
            tokio::time::sleep(Duration::from_secs(1)).await;
            if usage::server_cpu_s(pid) <= before {
                return Ok(child);
            }
            if Instant::now() > deadline {
                bail!("{clients} clients did not come to rest in time");
            }
        }
    }
}

/// Sockets of a process that are connected to a port of this host: entries of its `/proc/<pid>/net/tcp` that it holds.
fn established(pid: u32, port: u16) -> usize {
    let held: std::collections::HashSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.to_str()?.to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let remote = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|fields| {
        fields.get(2).is_some_and(|to| to.ends_with(&remote))
            && fields.get(3) == Some(&"01")
            && fields.get(9).is_some_and(|inode| held.contains(&format!("socket:[{inode}]")))
    })
    .count()
}

fn tempfile(beside: &Path) -> anyhow::Result<PathBuf> {
    let folder = beside.join("pgbench");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

/// The third column of pgbench's logs, in microseconds there.
fn latencies_ms(folder: &Path) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(file?.path())?;
        let third = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
        all.extend(text.lines().filter_map(third).map(|us| us / 1_000.0));
    }
    Ok(all)
}
