//! A whole platform for a test: made in a temporary folder on free ports, run by the real binary, and
//! removed with all its processes whatever happens.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use millrace_testkit::Sandbox;
use serde_json::Value;

/// Nodes, warehouse, console and proxy take seven ports in a row; some room is left.
const PORTS: u16 = 8;

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    #[track_caller]
    pub(crate) fn failed(self, code: i32, part: &str) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains(part), "`{part}` is not in: {}", self.stderr);
        self.stderr
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}

/// A platform folder and the processes that it may have.
#[derive(Debug)]
pub(crate) struct Platform {
    folder: Sandbox,
    pub(crate) base_port: u16,
}

impl Platform {
    /// `millrace init --pack loans`, data beside it.
    pub(crate) fn init() -> Self {
        let folder = Sandbox::new();
        let platform = Self { folder, base_port: free_ports() };
        let base_port = platform.base_port.to_string();
        let dir = platform.dir();
        let said = run(&["init", "--pack", "loans", "--base-port", &base_port, dir.to_str().unwrap()], &[]);
        said.ok();
        platform
    }

    /// Puts its data on a file system whose files can share blocks; or why that cannot be here.
    pub(crate) fn mount_xfs(&self, megabytes: u64) -> Result<(), String> {
        self.folder.mount_xfs(&self.data(), megabytes)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.folder.path().join("platform")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// One command on this platform.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        let dir = self.dir();
        let mut all = vec!["--dir", dir.to_str().unwrap()];
        all.extend(arguments);
        run(&all, &[])
    }

    /// `up -d` with more arguments; returns what it said.
    #[track_caller]
    pub(crate) fn up(&self, arguments: &[&str]) -> String {
        let mut all = vec!["up", "-d"];
        all.extend(arguments);
        self.run(&all).ok()
    }

    #[track_caller]
    pub(crate) fn down(&self) {
        self.run(&["down"]).ok();
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.run(&["status", "--json"]).json()
    }

    /// SQL on the primary (or `warehouse`, `replica1`, …); rows of tab-separated texts.
    #[track_caller]
    pub(crate) fn sql(&self, target: &str, sql: &str) -> String {
        self.run(&["psql", target, "--", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .ok()
            .trim_end()
            .to_owned()
    }

    /// In another database than the pack's.
    #[track_caller]
    pub(crate) fn sql_in(&self, target: &str, database: &str, sql: &str) -> String {
        let connect = format!("\\connect \"{database}\"");
        let options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", &connect, "-c", sql];
        self.run(&[["psql", target, "--"].as_slice(), &options].concat()).ok().trim_end().to_owned()
    }

    pub(crate) fn try_sql(&self, target: &str, sql: &str) -> Said {
        self.run(&["psql", target, "--", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
    }

    /// The platform process.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        std::fs::read_to_string(self.data().join("run/platform.lock")).unwrap().trim().parse().unwrap()
    }

    #[track_caller]
    pub(crate) fn kill_platform(&self) {
        let pid = self.pid();
        kill(pid, "KILL");
        wait_until("the platform to be gone", || !alive(pid));
    }

    /// Every table and every model is identical, under whatever load there is.
    #[track_caller]
    pub(crate) fn prove(&self) {
        let said = self.run(&["prove", "--json"]);
        let proof: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said:?}"));
        let compared = proof["tables"].as_array().unwrap().len() + proof["models"].as_array().unwrap().len();
        assert!(compared >= 6, "too little was compared: {proof:#}");
        assert_eq!(said.code, 0, "{proof:#}");
    }

    pub(crate) fn node_pids(&self) -> Vec<u64> {
        self.status()["nodes"].as_array().unwrap().iter().filter_map(|node| node["pid"].as_u64()).collect()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = std::fs::read_to_string(self.data().join("logs/millrace.log"))
        {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the platform's log ends so:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        if let Ok(text) = std::fs::read_to_string(self.data().join("run/platform.lock"))
            && let Ok(pid) = text.trim().parse()
            && std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("millrace"))
        {
            kill(pid, "KILL");
        }
        let Ok(nodes) = std::fs::read_dir(self.data().join("nodes")) else { return };
        for node in nodes.flatten() {
            let Ok(text) = std::fs::read_to_string(node.path().join("data/postmaster.pid")) else { continue };
            if let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) {
                kill(pid, "QUIT");
                let deadline = Instant::now() + Duration::from_secs(20);
                while alive(pid) && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
        }
    }
}

/// The binary with arguments and variables.
pub(crate) fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    run_in(Path::new("/"), arguments, variables)
}

pub(crate) fn run_in(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    run_command(command(arguments).current_dir(folder).envs(variables.iter().copied()))
}

pub(crate) fn run_command(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    Said {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(arguments).env("NO_COLOR", "1").env_remove("MILLRACE_DIR");
    command
}

/// Replaces a part of a platform's configuration.
pub(crate) fn edit(platform: &Platform, from: &str, to: &str) {
    let path = platform.dir().join("millrace.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "`{from}` is not in millrace.toml:\n{text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

pub(crate) fn kill(pid: u32, signal: &str) {
    Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).stderr(Stdio::null()).status().unwrap();
}

/// A process that is there and not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}

/// Waits for a condition, at most a minute.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited a minute for {what}");
        std::thread::yield_now();
    }
}

/// The first of some ports in a row that are all free now. Tests run at once in many processes:
/// each looks in a place of its own first.
pub(crate) fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let room = (32_000 - 11_000) / PORTS;
    let process = u16::try_from(std::process::id() % u32::from(room)).unwrap();
    for _ in 0..room {
        let step = process.wrapping_add(NEXT.fetch_add(37, Ordering::Relaxed)) % room;
        let first = 11_000 + step * PORTS;
        if (first..first + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
    panic!("no free ports");
}

/// Customers that act until dropped, whatever happens to the servers.
pub(crate) struct Load(Child);

impl Load {
    pub(crate) fn on(platform: &Platform, rate: &str) -> Self {
        let dir = platform.dir();
        let child = command(&["--dir", dir.to_str().unwrap(), "simulate", "--rate", rate])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        kill(self.0.id(), "INT");
        self.0.wait().unwrap();
    }
}
