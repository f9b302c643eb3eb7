//! The peer: Patroni with three servers, one etcd and HAProxy, configured as its documentation says.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_base::{Secret, files};
use millrace_pg::{ConnectParams, connect};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
};

use super::{
    super::lab::Lab,
    processes::Grounds,
    round::{Cluster, Member, whole},
    writer::CONNECT_MAX,
};
use crate::{cli::PeerSettings, explain::Explained};

const ROLE: &str = "app_user";
const SCOPE: &str = "bench";
const ANSWER_MAX: Duration = Duration::from_secs(2);
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// A replica further behind is not well.
const LAG_BYTES_MAX: i64 = 1 << 20;
/// Where `scripts/peers.sh` puts it.
const INSTALLED: &str = ".deps/patroni/bin";

impl PeerSettings {
    /// `ttl`, `loop_wait`, `retry_timeout`. Patroni 4 raises anything smaller than the fastest to it.
    fn seconds(self) -> (u32, u32, u32) {
        match self {
            Self::Defaults => (30, 10, 10),
            Self::Fastest | Self::Quorum => (20, 1, 3),
        }
    }

    /// HAProxy's: for the defaults those of Patroni's own template (extras/confd/templates/haproxy.tmpl).
    fn checks(self) -> (&'static str, &'static str) {
        match self {
            Self::Defaults => ("5s", "inter 3s fall 3 rise 2"),
            Self::Fastest | Self::Quorum => ("1s", "inter 200ms fall 2 rise 1"),
        }
    }

    /// For the reader.
    pub(super) fn text(self) -> String {
        let (ttl, loop_wait, retry) = self.seconds();
        let (timeout, checks) = self.checks();
        let (name, replication) = match self {
            Self::Defaults => ("defaults", "asynchronous"),
            Self::Fastest => ("fastest", "asynchronous"),
            Self::Quorum => ("fastest, quorum", "synchronous_mode quorum"),
        };
        format!(
            "{name}: ttl {ttl}, loop_wait {loop_wait}, retry_timeout {retry}, {replication}; HAProxy {checks}, timeout check {timeout}"
        )
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Defaults => "Patroni, defaults",
            Self::Fastest => "Patroni, fastest",
            Self::Quorum => "Patroni, fastest, quorum",
        }
    }
}

/// The programs, found and able to run as the servers' user.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    patroni: PathBuf,
    patronictl: PathBuf,
    etcd: PathBuf,
    haproxy: PathBuf,
    pub(super) versions: Vec<String>,
}

impl Programs {
    /// Patroni in `given`, or on the path, or where `scripts/peers.sh` puts it.
    ///
    /// # Errors
    /// Names the first that is missing, and how to get it.
    pub(super) async fn find(lab: &Lab, given: Option<&Path>) -> anyhow::Result<Self> {
        const PATRONI: &str = "scripts/peers.sh failover, or: python3 -m venv DIR; DIR/bin/pip install 'patroni[etcd3,psycopg3]' \
                               psycopg-binary; then --patroni DIR/bin";
        let etcd = first(lab, &["etcd".into()], "--version").await;
        let etcd =
            etcd.map_err(|error| missing("etcd", &error, "scripts/peers.sh failover, or: apt install etcd-server"))?;
        // not on the path of everyone
        let haproxy = first(lab, &["haproxy".into(), "/usr/sbin/haproxy".into()], "-v").await;
        let haproxy = haproxy
            .map_err(|error| missing("HAProxy", &error, "scripts/peers.sh failover, or: apt install haproxy"))?;
        let places = match given {
            Some(folder) => vec![std::path::absolute(folder)?.join("patroni")],
            None => vec!["patroni".into(), std::path::absolute(INSTALLED)?.join("patroni")],
        };
        let user = lab.run_as().name();
        let patroni = first(lab, &places, "--version").await;
        let patroni = patroni.map_err(|error| missing(&format!("Patroni (as user {user})"), &error, PATRONI))?;
        Ok(Self {
            patronictl: patroni.0.with_file_name("patronictl"),
            versions: vec![patroni.1, etcd.1, haproxy.1],
            patroni: patroni.0,
            etcd: etcd.0,
            haproxy: haproxy.0,
        })
    }
}

fn missing(what: &str, error: &anyhow::Error, hint: &str) -> anyhow::Error {
    anyhow::anyhow!("{what} does not run: {}\n  hint: {hint}", crate::explain::chain(error.as_ref()))
}

/// The first of some programs that runs, and what it calls itself; else the last one's error.
async fn first(lab: &Lab, programs: &[PathBuf], argument: &str) -> anyhow::Result<(PathBuf, String)> {
    let mut found = Err(anyhow::anyhow!("it was not looked for"));
    for program in programs {
        found = version(lab, program, argument).await.map(|version| (program.clone(), version));
        if found.is_ok() {
            break;
        }
    }
    found
}

/// The first line of what a program says of itself.
async fn version(lab: &Lab, program: &Path, argument: &str) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).current_dir("/");
    lab.run_as().apply(command.as_std_mut());
    let said = command.output().await.with_context(|| format!("cannot run {}", program.display()))?;
    if !said.status.success() {
        bail!("{}: {}", program.display(), String::from_utf8_lossy(&said.stderr).trim_end());
    }
    let line = String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned();
    Ok(line.split(" - ").next().unwrap_or_default().to_owned())
}

/// A member as we start it.
#[derive(Debug)]
struct Node {
    name: String,
    port: u16,
    rest: u16,
    config: PathBuf,
    data: PathBuf,
    agent: Child,
}

/// A running cluster; nothing of it runs any more once this is dropped.
#[derive(Debug)]
pub(super) struct Patroni {
    programs: Programs,
    settings: PeerSettings,
    folder: PathBuf,
    run_as: millrace_pg::RunAs,
    nodes: Vec<Node>,
    entry: ConnectParams,
    admin: ConnectParams,
    others: Vec<Child>,
    _grounds: Grounds,
}

impl Patroni {
    pub(super) async fn start(lab: &Lab, programs: &Programs, settings: PeerSettings) -> anyhow::Result<Self> {
        let folder = lab.folder().join(format!("patroni-{settings:?}").to_lowercase());
        files::create_dir_all(&folder, 0o755)?;
        lab.run_as().own(&folder)?;
        lab.note(format!("{} starts: three members, etcd, HAProxy", settings.name()));
        let ports = free_ports::<9>()?;
        let [etcd, etcd_peer, entry, members @ ..] = ports;
        let password = lab.context.secrets.superuser.clone();
        let admin = ConnectParams {
            host: "127.0.0.1".to_owned(),
            port: entry,
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: password.clone(),
            tls: None,
            application_name: "millrace bench".to_owned(),
        };
        let mut cluster = Self {
            programs: programs.clone(),
            settings,
            run_as: lab.run_as().clone(),
            nodes: Vec::new(),
            entry: admin.as_user(ROLE, password.clone()),
            admin,
            others: Vec::new(),
            _grounds: Grounds(folder.clone()),
            folder,
        };
        let client = format!("http://127.0.0.1:{etcd}");
        let peer = format!("http://127.0.0.1:{etcd_peer}");
        let data = cluster.folder.join("etcd").to_string_lossy().into_owned();
        let store = [
            ["--data-dir", &data],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &format!("default={peer}")],
        ];
        let store = cluster.spawn(&programs.etcd.clone(), store.as_flattened(), "etcd.log")?;
        cluster.others.push(store);
        for (name, port) in ["n1", "n2", "n3"].iter().zip(members.chunks(2)) {
            let [port, rest] = port else { bail!("too few ports") };
            let config = cluster.folder.join(format!("{name}.yml"));
            let data = cluster.folder.join(name);
            let text = member(lab, &cluster.folder, settings, name, (*port, *rest, etcd), &password);
            // what is JSON is YAML
            files::write_atomic(&config, serde_json::to_string_pretty(&text)?.as_bytes(), 0o600)?;
            lab.run_as().own(&config)?;
            let agent = cluster.agent(name, &config)?;
            cluster.nodes.push(Node { name: (*name).to_owned(), port: *port, rest: *rest, config, data, agent });
        }
        let config = cluster.folder.join("haproxy.cfg");
        files::write_atomic(&config, haproxy(settings, entry, &cluster.nodes).as_bytes(), 0o644)?;
        let balancer =
            cluster.spawn(&programs.haproxy.clone(), &["-db", "-f", &config.to_string_lossy()], "haproxy.log")?;
        cluster.others.push(balancer);

        let (primary, _) = whole(&mut cluster).await?;
        let admin = connect(&primary.admin, CONNECT_MAX).await.explained()?;
        admin.batch_execute(super::TABLE).await?;
        millrace_pg::roles::ensure_login_role(&*admin, ROLE, "", &password).await.explained()?;
        admin.batch_execute(&format!("GRANT ALL ON bench_writes TO {ROLE}")).await?;
        Ok(cluster)
    }

    fn agent(&self, name: &str, config: &Path) -> anyhow::Result<Child> {
        self.spawn(&self.programs.patroni, &[&config.to_string_lossy()], &format!("{name}.log"))
    }

    /// In a group of its own: Ctrl-C is ours to handle.
    fn spawn(&self, program: &Path, arguments: &[&str], log: &str) -> anyhow::Result<Child> {
        let log = self.folder.join(log);
        let file = std::fs::File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.env("HOME", &self.folder).current_dir(&self.folder).process_group(0).kill_on_drop(true);
        self.run_as.apply(command.as_std_mut());
        command.spawn().with_context(|| format!("cannot run {}", program.display()))
    }
}

impl Cluster for Patroni {
    fn name(&self) -> &str {
        self.settings.name()
    }

    fn entry(&self) -> &ConnectParams {
        &self.entry
    }

    async fn members(&mut self) -> anyhow::Result<Vec<Member>> {
        let mut answer = Err(anyhow::anyhow!("no member was asked"));
        for node in &self.nodes {
            answer = get(node.rest, "/cluster").await;
            if answer.is_ok() {
                break;
            }
        }
        let answer = answer?;
        let said = answer.get("members").and_then(Value::as_array).context("/cluster names no members")?;
        let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut members = Vec::new();
        for node in &self.nodes {
            let Some(found) = said.iter().find(|member| text(member, "name") == node.name) else { continue };
            let (role, state) = (text(found, "role"), text(found, "state"));
            let primary = role == "leader";
            let synchronous = self.settings != PeerSettings::Quorum || role == "quorum_standby";
            let near = found.get("lag").and_then(Value::as_i64).is_some_and(|lag| lag < LAG_BYTES_MAX);
            members.push(Member {
                name: node.name.clone(),
                primary,
                well: if primary { state == "running" } else { state == "streaming" && near && synchronous },
                admin: ConnectParams { port: node.port, ..self.admin.clone() },
                data: node.data.clone(),
                agent: node.agent.id(),
            });
        }
        Ok(members)
    }

    async fn switch_over(&mut self) -> anyhow::Result<()> {
        let config = &self.nodes.first().context("there is no member")?.config;
        let mut command = Command::new(&self.programs.patronictl);
        command.arg("-c").arg(config).args(["switchover", "--force"]);
        command.env("HOME", &self.folder).current_dir(&self.folder).stdin(Stdio::null()).kill_on_drop(true);
        self.run_as.apply(command.as_std_mut());
        let said = tokio::time::timeout(COMMAND_MAX, command.output()).await.context("patronictl does not end")??;
        if !said.status.success() {
            bail!("patronictl switchover: {}", String::from_utf8_lossy(&said.stderr).trim_end());
        }
        Ok(())
    }

    fn revive(&mut self, member: &Member) -> anyhow::Result<()> {
        let Some(place) = self.nodes.iter().position(|node| node.name == member.name) else { return Ok(()) };
        let Some(node) = self.nodes.get_mut(place) else { return Ok(()) };
        if node.agent.try_wait()?.is_none() {
            return Ok(());
        }
        let (name, config) = (node.name.clone(), node.config.clone());
        let agent = self.agent(&name, &config)?;
        if let Some(node) = self.nodes.get_mut(place) {
            node.agent = agent;
        }
        Ok(())
    }
}

/// A member's configuration (Patroni's postgres0.yml with the measurement's ports).
fn member(
    lab: &Lab,
    folder: &Path,
    settings: PeerSettings,
    name: &str,
    (port, rest, etcd): (u16, u16, u16),
    password: &Secret,
) -> Value {
    let (ttl, loop_wait, retry_timeout) = settings.seconds();
    let at = |port: u16| format!("127.0.0.1:{port}");
    let login = |user: &str| json!({ "username": user, "password": password.reveal() });
    let synchronous = if settings == PeerSettings::Quorum { json!("quorum") } else { json!(false) };
    json!({
        "scope": SCOPE,
        "name": name,
        "restapi": { "listen": at(rest), "connect_address": at(rest) },
        "etcd3": { "host": at(etcd) },
        "bootstrap": {
            "dcs": {
                "ttl": ttl,
                "loop_wait": loop_wait,
                "retry_timeout": retry_timeout,
                "maximum_lag_on_failover": 1_048_576,
                "synchronous_mode": synchronous,
                "postgresql": {
                    "use_pg_rewind": true,
                    "use_slots": true,
                    "parameters": { "max_connections": 100 },
                },
            },
            "initdb": [{ "encoding": "UTF8" }, "data-checksums"],
        },
        "postgresql": {
            "listen": at(port),
            "connect_address": at(port),
            "data_dir": folder.join(name),
            "bin_dir": lab.binaries().folder(),
            "pgpass": folder.join(format!("{name}.pgpass")),
            "pg_hba": [
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication replicator 127.0.0.1/32 scram-sha-256",
            ],
            "authentication": {
                "superuser": login("postgres"),
                "replication": login("replicator"),
                "rewind": login("rewinder"),
            },
            "parameters": { "unix_socket_directories": "", "password_encryption": "scram-sha-256" },
        },
    })
}

/// HAProxy's configuration: Patroni's template (extras/confd/templates/haproxy.tmpl), the part of the primary.
fn haproxy(settings: PeerSettings, port: u16, nodes: &[Node]) -> String {
    let (timeout, checks) = settings.checks();
    let servers: String = nodes
        .iter()
        .map(|node| format!("    server {} 127.0.0.1:{} maxconn 100 check port {}\n", node.name, node.port, node.rest))
        .collect();
    format!(
        "global\n    maxconn 100\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout connect 4s\n    \
         timeout server 30m\n    timeout check {timeout}\nlisten primary\n    bind 127.0.0.1:{port}\n    \
         option httpchk HEAD /primary\n    http-check expect status 200\n    \
         default-server {checks} on-marked-down shutdown-sessions\n{servers}"
    )
}

/// What a member's REST interface says.
async fn get(port: u16, path: &str) -> anyhow::Result<Value> {
    let asking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_MAX, asking).await.with_context(|| format!("port {port} is silent"))??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    serde_json::from_str(body).with_context(|| format!("{path} on port {port} is not JSON"))
}

/// All at once, so that they differ.
fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let held: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
