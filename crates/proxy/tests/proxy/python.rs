//! Python's drivers by their own ways, on the server itself and through a proxy with fewer connections than they open:
//! what comes of each step is the same. `make setup` installs them into `.deps/venv`; without them this fails.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use millrace_testkit::PASSWORD;
use serde_json::Value;

use crate::harness::{Rig, pool_of};

fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps/venv/bin/python");
    if own.exists() { own } else { PathBuf::from("python3") }
}

async fn outcomes(port: u16, sslmode: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/clients.py");
    let mut child = Command::new(python())
        .arg(script)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_drivers_see_no_difference() {
    let rig = Rig::start(pool_of(4)).await;
    let direct = outcomes(rig.server.port(), "require").await;
    let through = outcomes(rig.address.port(), "disable").await;
    assert!(direct.as_object().unwrap().len() > 35, "{direct:#}");
    for (what, outcome) in direct.as_object().unwrap() {
        assert_eq!(through[what], *outcome, "{what}");
    }
}
