//! Python's, Node.js's and Java's drivers by their own ways, on the server itself and through proxies with fewer connections than they open: what comes
//! of each step is the same. `make setup` installs the drivers; without them these fail.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use millrace_proxy::{ClientTls, Options, PoolMode};
use millrace_testkit::PASSWORD;
use serde_json::{Map, Value};

use millrace_proxy_tests::{Rig, pool_of};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn python() -> Command {
    let own = here("../../.deps/venv/bin/python");
    let mut command = Command::new(if own.exists() { own } else { PathBuf::from("python3") });
    command.arg(here("tests/python/clients.py"));
    command
}

fn node() -> Command {
    let mut command = Command::new("node");
    command.arg(here("tests/node/clients.mjs"));
    command
}

fn java() -> Command {
    let mut command = Command::new("java");
    // compiled as it starts: it needs no folder for classes
    command
        .args(["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"])
        .arg(here("tests/java/Clients.java"));
    command
}

async fn outcomes(mut driver: Command, port: u16, sslmode: &str) -> Map<String, Value> {
    let mut child = driver
        .args(["127.0.0.1", &port.to_string(), sslmode])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{PASSWORD}").unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// On the server, through four connections, and encrypted through a pool of sessions.
async fn compare(driver: fn() -> Command, steps: usize) {
    let rig = Rig::start(pool_of(4)).await;
    let direct = outcomes(driver(), rig.server.port(), "require").await;
    assert!(direct.len() >= steps, "{} steps", direct.len());
    let transactions = outcomes(driver(), rig.address.port(), "disable").await;
    same("transactions", &direct, &transactions);

    let server = rig.server;
    let tls = server.tls_files().server_config(&[]).unwrap();
    let mut options = Options { client_tls: ClientTls::Require(tls), ..pool_of(20) };
    options.pool.mode = PoolMode::Session;
    let rig = Rig::before(server, options).await;
    let sessions = outcomes(driver(), rig.address.port(), "require").await;
    same("sessions", &direct, &sessions);
}

pub(crate) fn same(way: &str, direct: &Map<String, Value>, through: &Map<String, Value>) {
    let differ: Vec<String> = direct
        .iter()
        .filter(|(what, outcome)| through.get(*what) != Some(*outcome))
        .map(|(what, outcome)| format!("{what}:\n    {outcome}\n    {}", through.get(what).unwrap_or(&Value::Null)))
        .collect();
    assert!(differ.is_empty(), "{way}, {} steps differ:\n{}", differ.len(), differ.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_drivers_see_no_difference() {
    compare(python, 35).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_postgres_sees_no_difference() {
    compare(node, 180).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jdbc_sees_no_difference() {
    compare(java, 300).await;
}
