//! Python's drivers: psycopg 3 and asyncpg. `make setup` installs them from `tests/python/requirements.txt`
//! into `.deps/venv`; without them these tests fail, they are not skipped.

#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    clippy::cast_possible_wrap,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod common;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::Server;

fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let own = root.join(".deps/venv/bin/python");
    if own.exists() { own } else { PathBuf::from("python3") }
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_and_asyncpg() {
    let server = Server::start().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let python = python();
    let drivers = Command::new(&python).args(["-c", "import psycopg, asyncpg"]).output().expect("python3");
    assert!(
        drivers.status.success(),
        "python's drivers are missing: run `make setup`, or `python3 -m venv .deps/venv && .deps/venv/bin/pip install -r {}`",
        folder.join("requirements.txt").display()
    );
    let mut child = Command::new(python)
        .arg(folder.join("clients.py"))
        .args(["127.0.0.1", &server.address.port().to_string()])
        .arg(server.ca())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", server.password.reveal()).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.ends_with(b"ok\n"), "{errors}");
    server.wait_until_idle().await;
    server.stop().await;
}
