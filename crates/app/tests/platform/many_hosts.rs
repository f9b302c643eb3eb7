//! Three agents as on three hosts, each with an address and a folder of its own, meeting in a real etcd.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use millrace_testkit::{Sandbox, free_port};
use serde_json::Value;

use crate::harness::{Said, free_ports, run, wait_until};

const NODES: [&str; 3] = ["a", "b", "c"];

struct Hosts {
    folder: Sandbox,
    base_port: u16,
    api_port: u16,
    etcd: Child,
    agents: Vec<Option<Child>>,
}

fn address(node: usize) -> String {
    format!("127.0.1.{}", node + 1)
}

impl Hosts {
    /// One folder made by `init` and copied to each host, where what others reach listens on the host's own address.
    fn start() -> Self {
        let folder = Sandbox::new();
        let (base_port, api_port) = (free_ports(), free_port());
        let (etcd, endpoint) = etcd(&folder);
        let first = folder.path().join("a");
        let mut arguments = vec!["init".to_owned(), "--pack".into(), "loans".into()];
        for node in 0..NODES.len() {
            arguments.extend(["--host".to_owned(), address(node)]);
        }
        arguments.extend(["--etcd".to_owned(), endpoint, "--base-port".into(), base_port.to_string()]);
        arguments.push(first.display().to_string());
        let said = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]).ok();
        assert!(said.contains("millrace agent NODE"), "{said}");
        for node in NODES.iter().skip(1) {
            let copied = Command::new("cp").arg("-rp").args([&first, &folder.path().join(node)]).status();
            assert!(copied.unwrap().success());
        }
        for (i, node) in NODES.iter().enumerate() {
            let own = folder.path().join(node);
            let file = own.join("millrace.toml");
            let text = fs::read_to_string(&file).unwrap();
            let text = text.replace("0.0.0.0", &address(i));
            fs::write(&file, text.replace("# ttl_seconds = 3", &format!("api_port = {api_port}"))).unwrap();
        }
        let mut hosts = Self { folder, base_port, api_port, etcd, agents: vec![None, None, None] };
        for node in 0..NODES.len() {
            hosts.begin(node);
        }
        hosts.ready();
        hosts
    }

    fn dir(&self, node: usize) -> PathBuf {
        self.folder.path().join(NODES[node])
    }

    fn begin(&mut self, node: usize) {
        let log = File::options().append(true).create(true).open(self.folder.path().join("agents.log")).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_millrace"))
            .args(["agent", NODES[node], "--dir"])
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

    fn said(&self, node: usize, arguments: &[&str]) -> Said {
        let dir = self.dir(node);
        let mut all = vec!["--dir", dir.to_str().unwrap()];
        all.extend(arguments);
        run(&all, &[])
    }

    fn view(&self, node: usize) -> Option<Value> {
        let said = self.said(node, &["cluster", "status", "--json"]);
        (said.code == 0).then(|| said.json())
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        wait_until(what, || {
            let living = (0..NODES.len()).filter(|node| self.agents[*node].is_some());
            living.map(|node| self.view(node)).all(|view| view.as_ref().is_some_and(&condition))
        });
    }

    #[track_caller]
    fn ready(&self) {
        self.until("a ready cluster", |view| {
            view["primary_ready"] == true && view["members"].as_array().is_some_and(|members| members.len() == 2)
        });
    }

    fn primary(&self) -> usize {
        let view = (0..NODES.len()).filter(|node| self.agents[*node].is_some()).find_map(|node| self.view(node));
        let name = view.unwrap()["primary"].as_str().unwrap().to_owned();
        NODES.iter().position(|node| **node == name).unwrap()
    }

    /// Every process of a host: its agent and what works in its folder.
    fn signal(&mut self, node: usize, signal: &str) {
        let folder = self.dir(node).join("data/nodes");
        let mut pids = vec![self.agents[node].as_ref().unwrap().id().to_string()];
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let cwd = fs::read_link(process.path().join("cwd"));
            if cwd.is_ok_and(|cwd| cwd.starts_with(&folder)) {
                pids.push(process.file_name().to_string_lossy().into_owned());
            }
        }
        assert!(pids.len() > 1, "no server runs in {}", folder.display());
        // one may have ended by itself since
        Command::new("kill").arg(signal).args(&pids).stderr(Stdio::null()).status().unwrap();
    }

    fn kill(&mut self, node: usize) {
        self.signal(node, "-9");
        self.agents[node].take().unwrap().wait().unwrap();
    }

    /// SQL as a customer's program would send it, by the proxy of a host.
    fn sql(&self, by: usize, sql: &str) -> Said {
        let secrets = fs::read_to_string(self.dir(by).join("secrets.toml")).unwrap();
        let password = secrets.lines().find_map(|line| line.strip_prefix("app_user = ")).unwrap().trim_matches('"');
        let (host, port) = (address(by), self.base_port + 5);
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

    /// What a load balancer sees.
    fn api(&self, node: usize, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect((address(node), self.api_port)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", address(node)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for agent in self.agents.iter_mut().flatten() {
            // the sandbox's watchdog ends what these leave
            agent.kill().ok();
            agent.wait().ok();
        }
        self.etcd.kill().ok();
        self.etcd.wait().ok();
    }
}

fn etcd(sandbox: &Sandbox) -> (Child, String) {
    let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let folder = sandbox.path().join("etcd");
    fs::create_dir_all(&folder).unwrap();
    let etcd = Command::new("etcd")
        .args(["--name", "e", "--data-dir", "data", "--log-level", "error"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("e={peer}")])
        .current_dir(&folder)
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("log")).unwrap())
        .spawn()
        .expect("etcd: `make setup` installs it");
    (etcd, client)
}

const PAY: &str = "INSERT INTO operational.customers (full_name) VALUES ('Amina Otieno')";
const PAID: &str = "SELECT count(*) FROM operational.customers";

#[test]
fn a_host_dies_another_freezes_and_applications_find_the_primary() {
    let mut hosts = Hosts::start();
    let first = hosts.primary();
    assert_eq!(first, 0);
    assert_eq!(hosts.api(0, "/primary").0, 200);
    assert_eq!((hosts.api(1, "/primary").0, hosts.api(1, "/replica").0, hosts.api(0, "/replica").0), (503, 200, 503));
    assert_eq!(hosts.api(2, "/replica?lag=1MB").0, 200);
    assert_eq!(hosts.api(2, "/replica?lag=much").0, 400);
    assert_eq!(hosts.api(2, "/cluster").1["members"].as_array().unwrap().len(), 3);
    // any host's proxy leads to the primary, and to the schema of the pack
    hosts.sql(2, PAY).ok();

    hosts.kill(first);
    let killed = Instant::now();
    hosts.sql(2, PAY).ok();
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let second = hosts.primary();
    assert_ne!(second, first);
    assert_eq!(hosts.api(second, "/primary").0, 200);
    let history = hosts.said(2, &["cluster", "history"]).ok();
    assert!(history.contains("its agent is not heard"), "{history}");
    hosts.begin(first);
    hosts.ready();
    assert_eq!(hosts.sql(first, PAID).ok(), "2");

    // one that freezes is replaced, and when it wakes up it is a replica
    let other = (0..NODES.len()).find(|node| *node != second).unwrap();
    hosts.signal(second, "-STOP");
    // what is under way then may be lost, and is said to be unknown
    wait_until("another primary", || hosts.sql(other, PAY).code == 0);
    hosts.signal(second, "-CONT");
    hosts.ready();
    assert_ne!(hosts.primary(), second);
    assert!(hosts.sql(second, PAID).ok().parse::<u32>().unwrap() >= 3);

    // an operator's word is said on any host
    let third = hosts.primary();
    let to = (0..NODES.len()).find(|node| *node != third && *node != second).unwrap();
    let said = hosts.said(second, &["cluster", "switchover", "--to", NODES[to]]).ok();
    assert!(said.contains("is the primary"), "{said}");
    hosts.sql(third, PAY).ok();
    hosts.said(third, &["down"]).ok();
    hosts.agents[third].take().unwrap().wait().unwrap();
    hosts.sql(to, PAY).ok();
}

#[test]
fn words_of_the_wrong_kind_of_platform_are_refused() {
    let hosts_taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Sandbox::new();
    let dir = folder.path().join("p");
    let dir = dir.to_str().unwrap();
    let etcd = format!("http://127.0.0.1:{}", hosts_taken.local_addr().unwrap().port());
    run(&["init", "--pack", "loans", "--host", "127.0.1.1", dir], &[]).failed(2, "--etcd");
    run(&["init", "--pack", "loans", "--host", "127.0.1.1", "--host", "127.0.1.2", "--etcd", &etcd, dir], &[]).ok();
    run(&["--dir", dir, "up"], &[]).failed(1, "millrace agent NODE");
    run(&["--dir", dir, "agent", "z"], &[]).failed(1, "there is no node z");
    let file = format!("{dir}/millrace.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("host = \"127.0.1.1\"\n", "", 1)).unwrap();
    run(&["--dir", dir, "check"], &[]).failed(1, "node `a` has no host");
}
