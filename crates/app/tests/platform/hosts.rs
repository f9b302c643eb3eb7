//! Three agents as on three hosts, each with an address and a folder of its own, meeting in a real etcd: on this machine's own
//! addresses, or in network namespaces whose links can be cut.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use millrace_base::{Clock as _, SystemClock, tls::TlsFiles};
use millrace_testkit::{Sandbox, free_port};
use serde_json::Value;

use crate::{
    harness::{Said, free_ports, run, run_command, wait_until},
    lan::Lan,
};

pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];
/// With one that joins later.
pub(crate) const ALL: [&str; 4] = ["a", "b", "c", "d"];

pub(crate) struct Hosts {
    pub(crate) folder: Sandbox,
    base_port: u16,
    api_port: u16,
    /// Its members: one, or one on each host of a network.
    pub(crate) etcd: Vec<Option<Child>>,
    pub(crate) agents: Vec<Option<Child>>,
    pub(crate) lan: Option<Lan>,
}

impl Hosts {
    /// One folder made by `init` and copied to each host, where what others reach listens on the host's own address.
    pub(crate) fn start() -> Self {
        Self::on(None)
    }

    /// The same, each host in a namespace of its own with a member of etcd.
    pub(crate) fn start_in(lan: Lan) -> Self {
        Self::on(Some(lan))
    }

    fn on(lan: Option<Lan>) -> Self {
        let folder = Sandbox::new();
        let (base_port, api_port) = (free_ports(), free_port());
        let mut hosts = Self { folder, base_port, api_port, etcd: Vec::new(), agents: ALL.map(|_| None).into(), lan };
        let endpoints = hosts.begin_etcd();
        let first = hosts.dir(0);
        let mut arguments = vec!["init".to_owned(), "--pack".into(), "loans".into()];
        for node in 0..NODES.len() {
            arguments.extend(["--host".to_owned(), hosts.address(node)]);
        }
        for endpoint in endpoints {
            arguments.extend(["--etcd".to_owned(), endpoint]);
        }
        arguments.extend(["--base-port".into(), base_port.to_string(), first.display().to_string()]);
        let said = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]).ok();
        assert!(said.contains("millrace agent NODE") && said.contains("tls/etcd-ca.crt"), "{said}");
        hosts.said(0, &["check"]).failed(1, "etcd-ca.crt, which [etcd] names, is not there");
        fs::copy(hosts.etcd_tls().ca_cert(), first.join("tls/etcd-ca.crt")).unwrap();
        hosts.said(0, &["check"]).ok();
        for node in 1..NODES.len() {
            let copied = Command::new("cp").arg("-rp").args([&first, &hosts.dir(node)]).status();
            assert!(copied.unwrap().success());
        }
        for node in 0..NODES.len() {
            let file = hosts.dir(node).join("millrace.toml");
            let text = fs::read_to_string(&file).unwrap();
            let text = text.replace("0.0.0.0", &hosts.address(node));
            fs::write(&file, text.replace("# ttl_seconds = 3", &format!("api_port = {api_port}"))).unwrap();
        }
        for node in 0..NODES.len() {
            hosts.begin(node);
        }
        hosts.ready();
        hosts
    }

    pub(crate) fn address(&self, node: usize) -> String {
        match &self.lan {
            Some(lan) => lan.address(node),
            None => format!("127.0.1.{}", node + 1),
        }
    }

    /// A program that runs on this host.
    fn program(&self, node: usize, program: &str) -> Command {
        match &self.lan {
            Some(lan) => lan.program(node, program),
            None => Command::new(program),
        }
    }

    /// Starts every member, and says where each is.
    fn begin_etcd(&mut self) -> Vec<String> {
        let tls = self.etcd_tls();
        fs::create_dir_all(self.folder.path().join("etcd-tls")).unwrap();
        let hosts = (0..NODES.len()).map(|node| self.address(node)).chain(["127.0.0.1".to_owned()]);
        tls.generate(&hosts.collect::<Vec<_>>(), SystemClock::new().wall()).unwrap();
        let (certificate, key) = (tls.server_cert(), tls.server_key());
        let port = [free_port(), free_port()];
        let members = if self.lan.is_some() { NODES.len() } else { 1 };
        let peer = |node| self.etcd_at("http", node, port[1]);
        let peers: Vec<_> = (0..members).map(|node| format!("e{node}={}", peer(node))).collect();
        for node in 0..members {
            self.etcd.push(None);
            let (client, peer) = (self.etcd_at("https", node, port[0]), self.etcd_at("http", node, port[1]));
            let folder = self.folder.path().join(format!("etcd{node}"));
            fs::create_dir_all(&folder).unwrap();
            let script = format!(
                "exec etcd --name e{node} --data-dir data --log-level error --listen-client-urls {client} \
                 --advertise-client-urls {client} --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} \
                 --initial-cluster {} --cert-file {} --key-file {}",
                peers.join(","),
                certificate.display(),
                key.display()
            );
            fs::write(folder.join("run"), script).unwrap();
            self.begin_member(node);
        }
        (0..members).map(|node| self.etcd_at("https", node, port[0])).collect()
    }

    /// Its own authority, and a certificate for all members.
    fn etcd_tls(&self) -> TlsFiles {
        TlsFiles::in_folder(self.folder.path().join("etcd-tls"))
    }

    fn etcd_at(&self, scheme: &str, node: usize, port: u16) -> String {
        let host = self.lan.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |lan| lan.address(node));
        format!("{scheme}://{host}:{port}")
    }

    /// Starts a member, for the first time or again.
    pub(crate) fn begin_member(&mut self, node: usize) {
        let folder = self.folder.path().join(format!("etcd{node}"));
        let log = File::options().append(true).create(true).open(folder.join("log")).unwrap();
        let started =
            self.program(node, "sh").arg("run").current_dir(&folder).stdout(Stdio::null()).stderr(log).spawn();
        self.etcd[node] = Some(started.expect("etcd: `make setup` installs it"));
    }

    pub(crate) fn dir(&self, node: usize) -> PathBuf {
        self.folder.path().join(ALL[node])
    }

    /// What the documentation says to copy to a host that joins, from `from`.
    pub(crate) fn join(&mut self, from: usize, node: usize) {
        let (old, new) = (self.dir(from), self.dir(node));
        fs::create_dir(&new).unwrap();
        for part in ["millrace.toml", "secrets.toml", "pack", "tls"] {
            assert!(Command::new("cp").arg("-rp").arg(old.join(part)).arg(&new).status().unwrap().success());
        }
        let file = new.join("millrace.toml");
        let text = fs::read_to_string(&file).unwrap();
        let listen = |node| format!("listen = \"{}\"", self.address(node));
        fs::write(&file, text.replace(&listen(from), &listen(node))).unwrap();
        self.begin(node);
    }

    pub(crate) fn begin(&mut self, node: usize) {
        let log = File::options().append(true).create(true).open(self.folder.path().join("agents.log")).unwrap();
        let agent = self
            .program(node, env!("CARGO_BIN_EXE_millrace"))
            .args(["agent", ALL[node], "--dir"])
            .arg(self.dir(node))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.agents[node] = Some(agent);
    }

    pub(crate) fn said(&self, node: usize, arguments: &[&str]) -> Said {
        let mut command = self.program(node, env!("CARGO_BIN_EXE_millrace"));
        command.arg("--dir").arg(self.dir(node)).args(arguments).env("NO_COLOR", "1").env_remove("MILLRACE_DIR");
        run_command(command.current_dir("/"))
    }

    pub(crate) fn view(&self, node: usize) -> Option<Value> {
        let said = self.said(node, &["cluster", "status", "--json"]);
        (said.code == 0).then(|| said.json())
    }

    #[track_caller]
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        wait_until(what, || {
            let living = (0..ALL.len()).filter(|node| self.agents[*node].is_some());
            living.map(|node| self.view(node)).all(|view| view.as_ref().is_some_and(&condition))
        });
    }

    #[track_caller]
    pub(crate) fn ready(&self) {
        self.until("a ready cluster", |view| {
            view["primary_ready"] == true && view["members"].as_array().is_some_and(|members| members.len() == 2)
        });
    }

    pub(crate) fn primary(&self) -> usize {
        let view = (0..ALL.len()).filter(|node| self.agents[*node].is_some()).find_map(|node| self.view(node));
        let name = view.unwrap()["primary"].as_str().unwrap().to_owned();
        ALL.iter().position(|node| **node == name).unwrap()
    }

    /// Every process of a host: its agent and its server's.
    pub(crate) fn signal(&mut self, node: usize, signal: &str) {
        let agent = self.agents[node].as_ref().unwrap().id().to_string();
        let pids = self.server_pids(node);
        assert!(!pids.is_empty(), "no server runs on host {}", ALL[node]);
        // one may have ended by itself since
        Command::new("kill").arg(signal).arg(agent).args(&pids).stderr(Stdio::null()).status().unwrap();
    }

    pub(crate) fn signal_server(&self, node: usize, signal: &str) {
        let pids = self.server_pids(node);
        Command::new("kill").arg(signal).args(&pids).stderr(Stdio::null()).status().unwrap();
    }

    /// What works in its folder.
    fn server_pids(&self, node: usize) -> Vec<String> {
        let folder = self.dir(node).join("data/nodes");
        let works = |process: &fs::DirEntry| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&folder))
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().filter(works);
        processes.map(|process| process.file_name().to_string_lossy().into_owned()).collect()
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.signal(node, "-9");
        self.agents[node].take().unwrap().wait().unwrap();
    }

    /// Everything on a host ends in order.
    pub(crate) fn down(&mut self, node: usize) {
        self.said(node, &["down"]).ok();
        self.agents[node].take().unwrap().wait().unwrap();
    }

    /// SQL as a customer's program would send it, by the proxy of a host.
    pub(crate) fn sql(&self, by: usize, sql: &str) -> Said {
        let secrets = fs::read_to_string(self.dir(by).join("secrets.toml")).unwrap();
        let password = secrets.lines().find_map(|line| line.strip_prefix("app_user = ")).unwrap().trim_matches('"');
        let (host, port) = (self.address(by), self.base_port + 5);
        let way = format!("host={host} port={port} user=app_user dbname=loans_db sslmode=require connect_timeout=20");
        let psql = Command::new("psql")
            .args([&way, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        Said {
            code: psql.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&psql.stdout).trim().to_owned(),
            stderr: String::from_utf8_lossy(&psql.stderr).into_owned(),
        }
    }

    pub(crate) fn psql(&self, by: usize, target: &str, sql: &str) -> Said {
        self.said(by, &["psql", target, "--", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
    }

    /// What a load balancer sees.
    pub(crate) fn api(&self, node: usize, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect((self.address(node), self.api_port)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address(node)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for node in (0..ALL.len()).filter(|_| std::thread::panicking()) {
            for (whose, file) in [("agent", "millrace".to_owned()), ("server", ALL[node].to_owned())] {
                let path = self.dir(node).join(format!("data/logs/{file}.log"));
                let Ok(log) = fs::read_to_string(path) else { continue };
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(60)..].join("\n");
                eprintln!("the log of {}'s {whose} ends so:\n{last}", ALL[node]);
            }
        }
        for agent in self.agents.iter_mut().flatten() {
            // the sandbox's watchdog ends what these leave
            agent.kill().ok();
            agent.wait().ok();
        }
        for member in self.etcd.iter_mut().flatten() {
            member.kill().ok();
            member.wait().ok();
        }
    }
}
