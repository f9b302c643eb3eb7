//! psql 15: its commands, its cancel, its errors.

#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    clippy::cast_possible_wrap,
    reason = "helpers of tests: a failure here is a failed test"
)]

mod common;

use std::time::Duration;

use common::Server;
use millrace_base::Secret;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backslash_command_is_answered() {
    let server = Server::start().await;
    let commands = [
        "\\d",
        "\\d+",
        "\\dS",
        "\\da",
        "\\dA",
        "\\dA+",
        "\\db",
        "\\db+",
        "\\dc",
        "\\dconfig",
        "\\dC",
        "\\dC+",
        "\\dd",
        "\\dD",
        "\\ddp",
        "\\dE",
        "\\des",
        "\\det",
        "\\deu",
        "\\dew",
        "\\df",
        "\\dF",
        "\\dFd",
        "\\dFp",
        "\\dFt",
        "\\dg",
        "\\di",
        "\\dl",
        "\\dL",
        "\\dm",
        "\\dn",
        "\\dn+",
        "\\do",
        "\\dO",
        "\\dp",
        "\\dP",
        "\\drds",
        "\\dRp",
        "\\dRs",
        "\\ds",
        "\\dt",
        "\\dt+",
        "\\dt *.*",
        "\\dT",
        "\\du",
        "\\du+",
        "\\dv",
        "\\dv+",
        "\\dx",
        "\\dX",
        "\\dy",
        "\\l",
        "\\l+",
        "\\z",
        "\\conninfo",
        "\\encoding",
        "\\d fact_payments",
        "\\d+ fact_payments",
        "\\d warehouse.vw_monthly_revenue",
        "\\d+ vw_monthly_revenue",
        "\\d staging.loans",
        "\\sv vw_monthly_revenue",
        "\\d fact_*",
        "\\d staging.*",
    ];
    let mut failed = Vec::new();
    for command in commands {
        let output = server.run(&["-c", command]).await;
        if !output.status.success()
            || !output.stderr.is_empty() && !text(&output.stderr).starts_with("Did not find any")
        {
            failed.push(format!("{command}: {}", text(&output.stderr)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_described() {
    let server = Server::start().await;
    let described = text(&server.run(&["-c", "\\d fact_payments"]).await.stdout);
    for line in [
        "Table \"warehouse.fact_payments\"",
        "payment_id   | bigint",
        "| not null |",
        "amount       | numeric(12,2)",
        "note         | json",
    ] {
        assert!(described.contains(line), "{line} in\n{described}");
    }
    let listed = text(&server.run(&["-At", "-c", "\\dt", "-c", "\\dv", "-c", "\\dn", "-c", "\\l"]).await.stdout);
    for line in [
        "warehouse|fact_payments|table|millrace",
        "warehouse|vw_monthly_revenue|view|millrace",
        "staging|millrace",
        "warehouse|millrace|UTF8",
    ] {
        assert!(listed.contains(line), "{line} in\n{listed}");
    }
    assert!(!listed.contains("mr_"), "{listed}");
    let view = text(&server.run(&["-c", "\\d+ vw_monthly_revenue"]).await.stdout);
    assert!(view.contains("View definition:") && view.contains("date_trunc"), "{view}");
    let missing = server.run(&["-c", "\\d nosuch"]).await;
    assert!(text(&missing.stderr).contains("Did not find any relation named \"nosuch\""));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_and_their_errors() {
    let server = Server::start().await;
    let out = server
        .run(&["-At", "-c", "select 1; select 'a;b'; -- done", "-c", "show server_version", "-c", "select version()"])
        .await;
    let lines = text(&out.stdout);
    assert!(lines.starts_with("1\na;b\n15.0 (Millrace"), "{lines} {}", text(&out.stderr));
    let cases = [
        ("insert into fact_payments values (1)", "25006", "the warehouse is read-only"),
        ("select nosuch", "42703", "column \"nosuch\" does not exist"),
        ("select * from nosuch", "42P01", "relation \"nosuch\" does not exist"),
        ("selec 1", "42601", "syntax error"),
        ("select 1/0", "22012", "division by zero"),
        ("set transaction_read_only = off", "25006", "read-only"),
        ("begin read write", "25006", "read-only"),
        ("copy fact_payments to stdout", "0A000", "COPY"),
        ("show nosuch", "42704", "unrecognized configuration parameter"),
    ];
    for (sql, code, message) in cases {
        let out = server.run(&["-v", "VERBOSITY=verbose", "-c", sql]).await;
        let errors = text(&out.stderr);
        assert!(!out.status.success() && errors.contains(code) && errors.contains(message), "{sql}: {errors}");
    }
    // a failed transaction accepts only its end, and the prompt says so
    let out = server
        .run(&[
            "-At",
            "-v",
            "ON_ERROR_STOP=0",
            "-c",
            "begin; select 1",
            "-c",
            "select nosuch",
            "-c",
            "select 2",
            "-c",
            "commit",
            "-c",
            "select 3",
        ])
        .await;
    assert_eq!(text(&out.stdout), "BEGIN\n1\nROLLBACK\n3\n", "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("current transaction is aborted"));
    // FETCH_COUNT uses a cursor
    let out =
        server.run(&["-At", "-v", "FETCH_COUNT=7", "-c", "select g from generate_series(1, 100) g order by 1"]).await;
    assert_eq!(text(&out.stdout).lines().count(), 100, "{}", text(&out.stderr));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_c_cancels() {
    let server = Server::start().await;
    let mut command = server.psql();
    command
        .args(["-c", "select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b"])
        .stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id().to_string();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while server.reader.running() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the statement does not start");
        tokio::task::yield_now().await;
    }
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(text(&output.stderr).contains("canceling statement due to user request"), "{}", text(&output.stderr));
    server.wait_until_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_connect() {
    let server = Server::start().await;
    let good = server.conninfo();
    let wrong = server.passfile("wrong");
    let right = server.passfile(server.password.reveal());
    let cases = [
        (
            good.replace(&right.display().to_string(), &wrong.display().to_string()),
            "password authentication failed for user \"warehouse_reader\"",
        ),
        (good.replace("user=warehouse_reader", "user=nobody"), "password authentication failed for user \"nobody\""),
        (good.replace("sslmode=verify-full", "sslmode=disable"), "encrypted connections only"),
        (good.replace("dbname=warehouse", "dbname=postgres"), "database \"postgres\" does not exist"),
        (format!("{good} replication=database"), "no replication"),
    ];
    for (conninfo, message) in cases {
        let mut command = server.psql_at(&conninfo);
        let output =
            tokio::task::spawn_blocking(move || command.args(["-c", "select 1"]).output().unwrap()).await.unwrap();
        assert!(
            !output.status.success() && text(&output.stderr).contains(message),
            "{conninfo}: {}",
            text(&output.stderr)
        );
    }
    assert!(server.run(&["-c", "select 1"]).await.status.success());
    // a verifier in PostgreSQL's form lets in, too
    assert!(millrace_endpoint::Users::default().with_verifier("x", &Secret::new("md5abc")).is_err());
    server.stop().await;
}
