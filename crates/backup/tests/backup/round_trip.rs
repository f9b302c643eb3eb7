//! Backup and restore while writers go on: what comes back is exactly what was committed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::common::*;
use futures::StreamExt;
use millrace_backup::{BackupError, Kind, create, list, plan::PlanError, plan::Target, wal};
use millrace_base::{Lsn, Micros};
use millrace_testkit::{TestServer, wait_until};
use rand::Rng;
use tokio_util::sync::CancellationToken;

/// Inserts numbers one by one, and notes for each what the server said after its commit.
async fn write_on(server: &TestServer, stop: Arc<AtomicBool>) -> Vec<(i64, Lsn, Micros)> {
    let client = server.client_to("app").await;
    let mut committed = Vec::new();
    for number in 0i64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        client.execute("INSERT INTO t VALUES ($1, repeat('x', 500))", &[&number]).await.unwrap();
        let row = client
            .query_one(
                "SELECT pg_current_wal_insert_lsn()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
                &[],
            )
            .await
            .unwrap();
        committed.push((number, row.get::<_, String>(0).parse().unwrap(), Micros(row.get(1))));
    }
    committed
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_to_latest_time_and_position() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t (n bigint PRIMARY KEY, filler text)").await.unwrap();
    client.batch_execute("CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());

    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(&server, stop.clone());
    let work = async {
        let wait = |least: i64| {
            let client = &client;
            async move {
                wait_until(SOON, || async { numbers(client, "SELECT count(*) FROM t").await[0] >= least }).await;
            }
        };
        wait(200).await;
        let created = back_up(&kept.repo, &server, Kind::Full).await;
        let now = numbers(&client, "SELECT count(*) FROM t").await[0];
        wait(now + 500).await;
        stop.store(true, Ordering::SeqCst);
        created
    };
    let (committed, created) = tokio::join!(writer, work);
    assert!(created.manifest.pages_checked && created.manifest.pages_damaged.is_empty(), "{:?}", created.manifest);
    receiver.durable(position(&client).await).await;
    receiver.stop().await;

    // to the latest point: everything
    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    let copy = restored.promoted("app").await;
    let all: Vec<i64> = committed.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers(&copy, "SELECT n FROM t ORDER BY n").await, all);
    assert_eq!(numbers(&copy, "SELECT count(*) FROM u").await, [0], "an unlogged table is empty after a restore");
    copy.batch_execute("INSERT INTO t VALUES (-1); INSERT INTO u VALUES (1)").await.unwrap();
    assert!(!restored.spec.data_dir().join("millrace_restore_wal").exists(), "{}", restored.log());
    drop(restored);

    // to a position and to a time, half way between the backup and the end
    let first_after = committed.iter().position(|(_, lsn, _)| *lsn > created.manifest.stop).unwrap();
    let (_, lsn, time) = committed[usize::midpoint(first_after, committed.len())];
    let at_lsn = restore_to(&kept.repo, id, &server, |o| o.target = Target::Lsn { at: lsn, inclusive: true }).await;
    let at_lsn = at_lsn.unwrap();
    let got = numbers(&at_lsn.promoted("app").await, "SELECT n FROM t ORDER BY n").await;
    let until = committed.iter().filter(|(_, end, _)| *end <= lsn).count();
    // the record that begins at the position is replayed too, and it may be the next commit's first
    assert!(got == all[..until] || got == all[..=until], "{} of {until}", got.len());
    drop(at_lsn);
    let at_time = restore_to(&kept.repo, id, &server, |o| o.target = Target::Time { at: time, inclusive: true }).await;
    let got = numbers(&at_time.unwrap().promoted("app").await, "SELECT n FROM t ORDER BY n").await;
    assert_eq!(got, all[..committed.iter().filter(|(.., at)| *at <= time).count()]);

    // to a transaction and to a point that was named, without what came after
    drop(client);
    let client = server.client_to("app").await;
    let xid: i64 = client
        .query_one("INSERT INTO t VALUES (-1) RETURNING pg_current_xact_id()::text::bigint", &[])
        .await
        .unwrap()
        .get(0);
    client.batch_execute("INSERT INTO t VALUES (-2)").await.unwrap();
    client.query_one("SELECT pg_create_restore_point('before the migration')", &[]).await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (-3); INSERT INTO t VALUES (-4)").await.unwrap();
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    receiver.stop().await;
    let xid = u64::try_from(xid).unwrap();
    let named = Target::Name("before the migration".to_owned());
    let targets = [
        (Target::Xid { xid, inclusive: true }, vec![-1]),
        (Target::Xid { xid, inclusive: false }, vec![]),
        (named, vec![-2, -1]),
    ];
    for (target, last) in targets {
        let what = target.to_string();
        let restored = restore_to(&kept.repo, id, &server, |o| o.target = target).await.unwrap();
        let got = numbers(&restored.promoted("app").await, "SELECT n FROM t WHERE n < 0 ORDER BY n").await;
        assert_eq!(got, last, "{what}");
    }

    // outside of the window
    let late = Target::Lsn { at: Lsn(committed.last().unwrap().1.0 + (64 << 20)), inclusive: true };
    let error = restore_to(&kept.repo, id, &server, |o| o.target = late).await.err().unwrap();
    assert!(matches!(&error, BackupError::Plan(PlanError::OutsideWindow { .. })), "{error}");
    assert!(error.to_string().contains(&created.manifest.label), "{error}");
}

/// Restores to so many random times.
const TIMES: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn at_twenty_random_times_exactly_what_was_committed() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t (n bigint PRIMARY KEY, filler text)").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(&server, stop.clone());
    let work = async {
        let mut made = Vec::new();
        for kind in [Kind::Full, Kind::Incremental, Kind::Incremental] {
            made.push(back_up(&kept.repo, &server, kind).await.manifest.stopped_at);
            let least = numbers(&client, "SELECT count(*) FROM t").await[0] + 500;
            wait_until(SOON, || async { numbers(&client, "SELECT count(*) FROM t").await[0] >= least }).await;
        }
        stop.store(true, Ordering::SeqCst);
        made
    };
    let (committed, made) = tokio::join!(writer, work);
    receiver.durable(position(&client).await).await;
    receiver.stop().await;

    // from the first moment that a backup allows, which is when its end had been answered
    let first = made[0];
    // a commit follows, so that the time comes up in the log
    let last = committed[committed.len() - 2].2;
    let mut random = rand::rng();
    let times: Vec<Micros> = (0..TIMES).map(|_| Micros(random.random_range(first.0..last.0))).collect();
    let (repo, server, committed) = (&kept.repo, &server, &committed);
    let exact = times.into_iter().map(|at| async move {
        let target = Target::Time { at, inclusive: true };
        let restored = restore_to(repo, id, server, |options| options.target = target).await.unwrap();
        let got = numbers(&restored.promoted("app").await, "SELECT n FROM t ORDER BY n").await;
        // the time of a commit lies between the answer to the one before it and its own
        let answered = committed.iter().filter(|(.., answered)| *answered <= at).count();
        let at_most = committed.len().min(answered + 1);
        let right = got == numbered(answered) || got == numbered(at_most);
        assert!(right, "{at:?}: {} rows, {answered} were answered by then", got.len());
    });
    // four servers at a time are enough for the machine
    futures::stream::iter(exact).buffer_unordered(4).collect::<Vec<()>>().await;
}

fn numbered(rows: usize) -> Vec<i64> {
    (0..i64::try_from(rows).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_no_more_than_seconds() {
    let mut server = TestServer::start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 1000) AS n").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    back_up(&kept.repo, &server, Kind::Full).await;
    client.batch_execute("INSERT INTO t VALUES (2000)").await.unwrap();
    receiver.durable(position(&client).await).await;
    let segment: String = client.query_one("SELECT pg_walfile_name(pg_current_wal_lsn())", &[]).await.unwrap().get(0);
    drop(client);
    server.kill().await;
    // the segment was never finished: its parts are enough
    let status = wal::status(&kept.repo, id).await.unwrap();
    assert!(status.timelines[0].gaps.is_empty(), "{status:?}");
    let to = server.folder().join("fetched");
    wal::fetch(&kept.repo, id, &segment, &to).await.unwrap();
    assert_eq!(std::fs::metadata(&to).unwrap().len(), 16 << 20);
    let absent = wal::fetch(&kept.repo, id, "0000000100000000000000FF", &to).await.unwrap_err();
    assert!(matches!(absent, BackupError::WalAbsent { .. }), "{absent}");

    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    let copy = restored.promoted("app").await;
    assert_eq!(numbers(&copy, "SELECT max(n) FROM t").await, [2000]);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_and_one_that_is_cancelled() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client
        .batch_execute("CREATE TABLE t AS SELECT n, repeat('x', 200) FROM generate_series(1, 100000) AS n")
        .await
        .unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let slow = millrace_backup::CreateOptions {
        bytes_per_second_max: Some(4 << 20),
        wal_wait: None,
        ..options(&server, Kind::Full)
    };
    let stop = CancellationToken::new();
    let started = CancellationToken::new();
    let tell = started.clone();
    let progress = move |step| {
        if matches!(step, millrace_backup::Step::Copy { .. }) {
            tell.cancel();
        }
    };
    let first = create(&kept.repo, &slow, &progress, &stop);
    let second = async {
        started.cancelled().await;
        let fast = options(&server, Kind::Full);
        let error = create(&kept.repo, &fast, &*quiet(), &CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, BackupError::Busy), "{error}");
        assert_eq!(error.to_string(), "another backup of this server is running");
        stop.cancel();
    };
    let (first, ()) = tokio::join!(first, second);
    assert!(matches!(first, Err(BackupError::Cancelled)), "{first:?}");
    assert!(list(&kept.repo, id).await.unwrap().backups.is_empty());
    let receiver = Receiver::start(&kept.repo, server.params());
    back_up(&kept.repo, &server, Kind::Full).await;
    assert_eq!(list(&kept.repo, id).await.unwrap().backups.len(), 1);
    receiver.stop().await;
}
