//! Live customers, and a server that goes away under them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "the shared module serves several tests")]

mod pack;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::civil::date;
use millrace_base::Secret;
use millrace_config::pack::{Script, TextFile};
use millrace_pg::ConnectParams;
use millrace_testkit::{TestServer, wait_until};
use millrace_workload::{Progress, SampleOptions, Simulation, WorkloadError, load_sample, simulate};
use pack::{APP_PASSWORD, INCONSISTENT, migrated, number, pack, params};
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(60);

async fn loaded(server: &TestServer) {
    migrated(server, "loans_db").await;
    let pack = pack();
    let scripts: Vec<&TextFile> = pack.generate.iter().filter(|f| f.name.starts_with("sample")).collect();
    let options = SampleOptions { scale: 1, seed: 1, today: date(2026, 6, 30) };
    load_sample(&params(server, "loans_db"), &scripts, &options).await.unwrap();
}

fn app(server: &TestServer) -> ConnectParams {
    params(server, "loans_db").as_user("app_user", Secret::new(APP_PASSWORD))
}

#[tokio::test]
async fn customers_act_and_the_books_stay_right() {
    let server = TestServer::start().await;
    loaded(&server).await;
    let client = server.client_to("loans_db").await;
    let before = number(&client, "SELECT count(*) FROM operational.payments").await;
    let token = CancellationToken::new();
    let seen = Arc::new(Mutex::new(Progress::default()));
    let keep = seen.clone();
    let operations = pack().simulate;
    let params = app(&server);
    let running = simulate(
        &params,
        &operations,
        Simulation { rate: 400.0, seed: 1, connections: 4 },
        token.clone(),
        move |progress| {
            *keep.lock().unwrap() = progress.clone();
        },
    );
    let stop = async {
        wait_until(WAIT, || async {
            let seen = seen.lock().unwrap();
            seen.operations.len() == operations.len()
                && seen.operations.values().all(|c| c.done > 0)
                && seen.total().done > 600
        })
        .await;
        token.cancel();
    };
    let (ended, ()) = tokio::join!(running, stop);
    let progress = ended.unwrap();
    let total = progress.total();
    assert_eq!((total.refused, total.in_doubt, progress.reconnects), (0, 0, 0), "{progress:?}");
    let paid = number(&client, "SELECT count(*) FROM operational.payments").await - before;
    assert_eq!(u64::try_from(paid).unwrap(), progress.operations["instalment paid"].done);
    assert_eq!(number(&client, INCONSISTENT).await, 0);
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    let mut server = TestServer::start().await;
    loaded(&server).await;
    let before = number(&server.client_to("loans_db").await, "SELECT count(*) FROM operational.payments").await;
    let token = CancellationToken::new();
    let seen = Arc::new(Mutex::new(Progress::default()));
    let keep = seen.clone();
    let operations = pack().simulate;
    let params = app(&server);
    let running = simulate(&params, &operations, Simulation::new(100.0, 3), token.clone(), move |progress| {
        *keep.lock().unwrap() = progress.clone();
    });
    let disturb = async {
        let done = || seen.lock().unwrap().total().done;
        wait_until(WAIT, || async { done() > 20 }).await;
        server.kill().await;
        server.start_again().await;
        wait_until(WAIT, || async { seen.lock().unwrap().reconnects > 0 }).await;
        let back = done();
        wait_until(WAIT, || async { done() > back + 20 }).await;
        server.restart().await;
        let back = done();
        wait_until(WAIT, || async { done() > back + 20 }).await;
        token.cancel();
    };
    let (ended, ()) = tokio::join!(running, disturb);
    let progress = ended.unwrap();
    let client = server.client_to("loans_db").await;
    let paid = number(&client, "SELECT count(*) FROM operational.payments").await - before;
    let counts = progress.operations["instalment paid"];
    let paid = u64::try_from(paid).unwrap();
    assert!((counts.done..=counts.done + counts.in_doubt).contains(&paid), "{paid} paid, {progress:?}");
    assert_eq!(number(&client, INCONSISTENT).await, 0);
}

#[tokio::test]
async fn what_will_not_get_better_is_an_error() {
    let server = TestServer::start().await;
    migrated(&server, "loans_db").await;
    let script = |sql: &str| Script { path: "a.sql".into(), name: "a".to_owned(), weight: 1.0, sql: sql.to_owned() };
    let token = CancellationToken::new();
    let run = |sql: &str, rate| {
        let (params, scripts, token) = (app(&server), [script(sql)], token.clone());
        async move { simulate(&params, &scripts, Simulation::new(rate, 1), token, |_| ()).await.unwrap_err() }
    };
    let error = run("SELEC :r1", 10.0).await;
    assert!(matches!(&error, WorkloadError::Operation { name, .. } if name == "a"), "{error}");
    let error = run("DELETE FROM operational.audit_log", 10.0).await;
    assert!(matches!(&error, WorkloadError::Operation { .. }), "{error}");
    assert!(matches!(run("SELECT :x", 10.0).await, WorkloadError::UnknownParameter { .. }));
    assert!(matches!(run("SELECT 1", 0.0).await, WorkloadError::BadRate(_)));
    let wrong = app(&server).as_user("app_user", Secret::new("no"));
    let error = simulate(&wrong, &[script("SELECT 1")], Simulation::new(1.0, 1), token, |_| ()).await.unwrap_err();
    assert!(error.hint().unwrap().contains("password"), "{error}");
}
