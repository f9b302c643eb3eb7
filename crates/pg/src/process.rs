//! A server process: started or adopted, watched, stopped.
//!
//! Own children and servers left by a killed supervisor are watched the same way, by pidfd, which
//! cannot mistake a reused pid for the process it was opened for. Dropping a [`Postmaster`]
//! leaves its server running.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use millrace_base::Micros;
use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, timeout},
};

use crate::{diagnose, error::ServerError, process_table, server::ServerSpec};

/// A process that has been killed is gone within this, unless it waits for a disk.
const KILLED_MAX: Duration = Duration::from_secs(10);
/// One that waits for a disk which answers is gone within this.
const ENDING: Duration = Duration::from_millis(300);

/// How a server is asked to stop (manual, "Shutting Down the Server").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is written, replicas get everything.
    Fast,
    /// At once; recovery at the next start.
    Immediate,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was not our child: the system does not tell.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(0) => f.write_str("ended in order"),
            Self::Code(code) => write!(f, "ended with code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// What works in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    None,
    /// All have been killed, and some wait in the kernel, for a disk that does not answer. A write that is under way may
    /// still come to its end; nothing else is done, and no client is told anything any more, as that is a later step of
    /// the program. The directory must not be touched until they are gone.
    Dying,
    Alive,
}

/// A running server.
#[derive(Debug)]
pub struct Postmaster {
    pid: u32,
    started_at: Option<Micros>,
    pidfd: AsyncFd<OwnedFd>,
    /// `None` if adopted.
    child: Option<Child>,
    spec: ServerSpec,
    /// Where this start's lines begin in the log.
    log_offset: u64,
}

/// `postmaster.pid` (manual, "Database File Layout").
#[derive(Debug, Clone, PartialEq, Eq)]
struct PidFile {
    pid: u32,
    started_at: Option<Micros>,
    /// `starting`, `stopping`, `ready`, `standby`.
    status: String,
}

impl PidFile {
    fn read(data_dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        Some(Self {
            // negative for a stand-alone backend
            pid: lines.first()?.parse::<i64>().ok()?.unsigned_abs().try_into().ok()?,
            started_at: lines.get(2).and_then(|s| s.parse::<i64>().ok()).map(|s| Micros(s.saturating_mul(1_000_000))),
            status: lines.get(7).unwrap_or(&"").to_string(),
        })
    }
}

impl ServerSpec {
    /// The pid of the server that runs on this data directory, if one does.
    ///
    /// The pid file alone proves nothing: the process must be a `postgres` that works in the
    /// directory and is not the child of another such one.
    #[must_use]
    pub fn running_pid(&self) -> Option<u32> {
        let file = PidFile::read(&self.data_dir())?;
        let processes = process_table::working_in(&self.data_dir());
        let found = processes.iter().find(|p| p.pid == file.pid && p.program.starts_with("postgres") && !p.dying)?;
        let is_child = processes.iter().any(|p| p.pid == found.parent && p.program.starts_with("postgres"));
        (!is_child).then_some(found.pid)
    }

    /// Takes over the server that runs on this data directory, if one does.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn adopt(&self) -> Result<Option<Postmaster>, ServerError> {
        let Some(pid) = self.running_pid() else {
            return Ok(None);
        };
        let Some(pidfd) = watch(pid)? else {
            return Ok(None);
        };
        // the pidfd is open now: if this is still the server, it always will be
        if self.running_pid() != Some(pid) {
            return Ok(None);
        }
        let started_at = PidFile::read(&self.data_dir()).and_then(|file| file.started_at);
        Ok(Some(Postmaster { pid, started_at, pidfd, child: None, spec: self.clone(), log_offset: 0 }))
    }

    /// Starts the server; [`Postmaster::ready`] waits for it.
    ///
    /// Processes left over by a server that was killed are killed first: as long as one lives,
    /// a new server must not touch the directory.
    ///
    /// # Errors
    /// If the directory is not fit to be started from, or a server runs on it already.
    pub async fn start(&self) -> Result<Postmaster, ServerError> {
        let data = self.data_dir();
        self.check_startable()?;
        if let Some(pid) = self.running_pid() {
            return Err(ServerError::AlreadyRunning { data_dir: data, pid });
        }
        self.end_orphans().await?;
        self.end_copies();

        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log_file)
            .map_err(ServerError::io("open", &self.log_file))?;
        let log_offset = log.metadata().map_or(0, |metadata| metadata.len());
        let second = log.try_clone().map_err(ServerError::io("open", &self.log_file))?;
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(second))
            // a Ctrl-C in the terminal is for the supervisor, which stops servers in order
            .process_group(0);
        let child = command.spawn().map_err(ServerError::io("run", self.binaries.program("postgres")))?;
        let pid = child.id();
        let pidfd = watch(pid)?.ok_or(ServerError::Ended { data_dir: data, log_tail: Vec::new() })?;
        tracing::info!(pid, port = self.port, folder = %self.folder.display(), "server started");
        Ok(Postmaster { pid, started_at: None, pidfd, child: Some(child), spec: self.clone(), log_offset })
    }

    /// What PostgreSQL itself would refuse, with words of our own.
    fn check_startable(&self) -> Result<(), ServerError> {
        let data = self.data_dir();
        if data.exists() {
            self.run_as.check_owner(&data)?;
        }
        self.run_as.check_reachable(&data)?;
        let version = data.join("PG_VERSION");
        let found = match fs::read_to_string(&version) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ServerError::NotADataDirectory { path: data });
            }
            Err(error) => return Err(ServerError::io("read", version)(error)),
        };
        if found != self.binaries.major().to_string() {
            return Err(ServerError::WrongVersion { data_dir: data, found, expected: self.binaries.major() });
        }
        Ok(())
    }

    /// The server's processes: a backend can outlive its postmaster, and commit.
    #[must_use]
    pub fn processes(&self) -> Processes {
        let mut found = Processes::None;
        for process in self.of_server() {
            if !process.dying {
                return Processes::Alive;
            }
            found = Processes::Dying;
        }
        found
    }

    fn of_server(&self) -> Vec<process_table::Process> {
        let mut all = process_table::working_in(&self.data_dir());
        all.retain(|process| process.program.starts_with("postgres"));
        all
    }

    /// Kills the server with all that belongs to it, however it is (stopped, hanging, without its postmaster), and
    /// returns once nothing of it is left that could have a commit acknowledged: none, or [`Processes::Dying`]. Touches
    /// no file.
    ///
    /// # Errors
    /// If a process survives for ten seconds.
    pub async fn fence(&self) -> Result<(), ServerError> {
        let begun = Instant::now();
        loop {
            let left = self.of_server();
            let alive = left.iter().find(|process| !process.dying);
            match alive {
                None if left.is_empty() || begun.elapsed() >= ENDING => return Ok(()),
                Some(survivor) if begun.elapsed() >= KILLED_MAX => {
                    return Err(ServerError::WillNotStop { pid: survivor.pid });
                }
                _ => {}
            }
            for process in left.iter().filter(|process| !process.dying) {
                process_table::signal(process.pid, Signal::KILL);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills what a killed server left, then removes its pid file, which might name a process
    /// of someone else by now.
    pub(crate) async fn end_orphans(&self) -> Result<(), ServerError> {
        let data = self.data_dir();
        let deadline = Instant::now() + KILLED_MAX;
        loop {
            let orphans = self.of_server();
            let Some(first) = orphans.first() else { break };
            if Instant::now() >= deadline {
                return Err(ServerError::WillNotStop { pid: first.pid });
            }
            for orphan in &orphans {
                process_table::signal(orphan.pid, Signal::KILL);
            }
            sleep(Duration::from_millis(5)).await;
        }
        match fs::remove_file(data.join("postmaster.pid")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ServerError::io("remove the pid file in", data)(error))
            }
            _ => Ok(()),
        }
    }
}

#[expect(unsafe_code, reason = "tokio has no safe way to register a descriptor that it knows to be owned")]
fn register(pidfd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives, and
    // the `AsyncFd` owns it from here on.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(std::io::Error::from)
}

/// `None` if the process is gone.
fn watch(pid: u32) -> Result<Option<AsyncFd<OwnedFd>>, ServerError> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => register(pidfd).map(Some).map_err(ServerError::io("watch", format!("process {pid}"))),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(errno) => Err(ServerError::io("watch", format!("process {pid}"))(errno.into())),
    }
}

impl Postmaster {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// By the server's own word; `None` until it is ready.
    #[must_use]
    pub fn started_at(&self) -> Option<Micros> {
        self.started_at
    }

    /// It was started by an earlier supervisor.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// Waits until the process has ended, and reaps it. Safe to drop and call again.
    pub async fn exited(&mut self) -> Exit {
        // a pidfd becomes readable once and stays so
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(pid = self.pid, %error, "cannot watch a server any more");
        }
        self.reap()
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        process_table::look_at(self.pid).is_some()
    }

    fn reap(&mut self) -> Exit {
        let status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        match status {
            Some(status) => {
                status.code().map(Exit::Code).or(status.signal().map(Exit::Signal)).unwrap_or(Exit::Unknown)
            }
            None => Exit::Unknown,
        }
    }

    /// Waits until the server accepts connections; a replica: until it can be read.
    ///
    /// # Errors
    /// If it ends (the cause from its log), or is not ready after `deadline`; then it still runs.
    pub async fn ready(&mut self, deadline: Duration) -> Result<(), ServerError> {
        let data = self.spec.data_dir();
        let until = Instant::now() + deadline;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            if timeout(Duration::from_millis(20), self.exited()).await.is_ok() {
                let tail = diagnose::log_tail(&self.spec.log_file, self.log_offset);
                return Err(diagnose::cause(&data, self.spec.port, tail));
            }
            if Instant::now() >= until {
                let log_tail = diagnose::log_tail(&self.spec.log_file, self.log_offset);
                return Err(ServerError::NotReady { data_dir: data, deadline, log_tail });
            }
        }
    }

    /// Whether the server accepts connections by its own word, without asking it.
    pub fn is_ready(&mut self) -> bool {
        match PidFile::read(&self.spec.data_dir()) {
            Some(file) if file.pid == self.pid && file.status == "ready" => {
                self.started_at = file.started_at;
                true
            }
            _ => false,
        }
    }

    /// A future that ends when the server does, apart from this handle.
    ///
    /// # Errors
    /// If the process can be watched no more.
    pub fn watcher(&self) -> Result<impl Future<Output = ()> + Send + 'static + use<>, ServerError> {
        let pid = self.pid;
        let pidfd = (self.pidfd.get_ref().try_clone())
            .and_then(register)
            .map_err(ServerError::io("watch", format!("process {pid}")))?;
        Ok(async move {
            if let Err(error) = pidfd.readable().await {
                tracing::error!(pid, %error, "cannot watch a server any more");
            }
        })
    }

    /// Why the server ended, from what it wrote since its start.
    #[must_use]
    pub fn cause_of_end(&self) -> ServerError {
        let tail = diagnose::log_tail(&self.spec.log_file, self.log_offset);
        diagnose::cause(&self.spec.data_dir(), self.spec.port, tail)
    }

    /// Stops the server: as asked, after `deadline` at once, and in the end by `SIGKILL`.
    ///
    /// # Errors
    /// If it survives even that (a process in uninterruptible sleep).
    pub async fn stop(&mut self, mode: StopMode, deadline: Duration) -> Result<Exit, ServerError> {
        let steps = [
            (mode == StopMode::Fast).then_some((Signal::INT, deadline)),
            Some((Signal::QUIT, Duration::from_secs(10))),
            Some((Signal::KILL, Duration::from_secs(10))),
        ];
        for (signal, wait) in steps.into_iter().flatten() {
            self.signal(signal);
            if let Ok(exit) = timeout(wait, self.exited()).await {
                return Ok(exit);
            }
            tracing::warn!(pid = self.pid, ?signal, "server did not stop in time");
        }
        Err(ServerError::WillNotStop { pid: self.pid })
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// Kills the server as a crash would. For tests and fencing.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid, %error, "cannot signal a server"),
        }
    }
}
