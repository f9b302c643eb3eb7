//! What happens in the midst of a backup: tables come and go, servers fail, the way to the repository is slow.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use millrace_backup::{
    BackupError, CreateOptions, Kind, Step, contents::record, create, list, repo::Location, wal::ReceiveStatus,
};
use millrace_pg::Connection;
use millrace_testkit::{Bucket, TestServer, wait_until};
use tokio_util::sync::CancellationToken;

use crate::{common::*, s3};

/// Makes, changes and removes tables, indexes and databases, again and again; how often.
async fn define(server: &TestServer, stop: &AtomicBool) -> u32 {
    let client = server.client_to("app").await;
    let mut rounds = 0;
    while !stop.load(Ordering::SeqCst) {
        let (now, before) = (rounds % 3, (rounds + 1) % 3);
        for sql in [
            format!("DROP TABLE IF EXISTS d{now}"),
            format!(
                "CREATE TABLE d{now} AS SELECT n::bigint, repeat('y', 100) AS s FROM generate_series(1, 3000) AS n"
            ),
            format!("CREATE INDEX CONCURRENTLY ON d{now} (n)"),
            format!("ALTER TABLE d{now} ALTER n TYPE numeric, ADD more int DEFAULT {rounds}"),
            format!("VACUUM FULL d{now}"),
            format!("TRUNCATE d{now}; INSERT INTO d{now} SELECT n, 'new' FROM generate_series(1, 500) AS n"),
            format!("ALTER TABLE IF EXISTS d{before} RENAME TO e"),
            "DROP TABLE IF EXISTS e".to_owned(),
            "CLUSTER kept USING kept_pkey".to_owned(),
            "REINDEX TABLE kept".to_owned(),
            format!("DROP DATABASE IF EXISTS of_round_{before}"),
            format!("CREATE DATABASE of_round_{now} STRATEGY FILE_COPY"),
        ] {
            client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        client.batch_execute(&format!("DROP DATABASE of_round_{now}")).await.unwrap();
        rounds += 1;
    }
    rounds
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_indexes_and_databases_that_come_and_go() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let kept_table = "CREATE TABLE kept (n bigint PRIMARY KEY, s text);
                      INSERT INTO kept SELECT n, repeat('x', 200) FROM generate_series(1, 100000) AS n";
    client.batch_execute(kept_table).await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let stop = AtomicBool::new(false);
    let work = async {
        let slow = |kind| CreateOptions { bytes_per_second_max: Some(20 << 20), ..options(&server, kind) };
        let mut made = Vec::new();
        for kind in [Kind::Full, Kind::Incremental] {
            made.push(create(&kept.repo, &slow(kind), &*quiet(), &CancellationToken::new()).await.unwrap().manifest);
        }
        stop.store(true, Ordering::SeqCst);
        made
    };
    let (rounds, made) = tokio::join!(define(&server, &stop), work);
    assert!(rounds > 1, "{rounds}");
    assert_eq!(made[1].parent.as_ref(), Some(&made[0].label));
    let recorded = record(&kept.repo, &made[1], &record_options(&server, SOON), &*quiet()).await.unwrap();
    assert_eq!(recorded.all_left_out(), [""; 0]);
    receiver.durable(position(&client).await).await;
    let proof = proven(&kept, id, &server).await.unwrap();
    assert_eq!((proof.tables, proof.rows), (recorded.tables(), recorded.rows()));
    assert!(proof.check_ms.is_some() && proof.rows > 100_000, "{proof:?}");
    receiver.stop().await;
}

/// Begins a slow backup, does something once so much has been read, and says how the backup ended.
async fn during<F: Future<Output = ()>>(
    kept: &Kept,
    options: CreateOptions,
    after: u64,
    event: impl FnOnce() -> F,
) -> Result<millrace_backup::Created, BackupError> {
    let slow = CreateOptions { bytes_per_second_max: Some(20 << 20), threads: 1, ..options };
    let (reached, stop) = (CancellationToken::new(), CancellationToken::new());
    let tell = |step| {
        if matches!(step, Step::Copy { bytes, .. } if bytes >= after) {
            reached.cancel();
        }
    };
    let making = create(&kept.repo, &slow, &tell, &stop);
    let failing = async {
        reached.cancelled().await;
        event().await;
    };
    tokio::join!(making, failing).0
}

async fn fill(client: &Connection) {
    let table = "CREATE TABLE t AS SELECT n::bigint, md5(n::text) || md5((-n)::text) AS filler FROM generate_series(1, 700000) AS n";
    for sql in [table, "VACUUM (FREEZE) t", "CHECKPOINT"] {
        client.batch_execute(sql).await.unwrap();
    }
}

/// The replica that is copied is promoted, because the primary has failed: that backup is of no use, and the next one goes on.
/// A backup of before is then proven over the change of timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover() {
    let server = TestServer::builder().settings(&[("full_page_writes", "on")]).start().await;
    let client = server.create_database("app").await;
    fill(&client).await;
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let replica = server.replica().await;
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let first = back_up(&kept.repo, &server, Kind::Full).await;
    let before = record(&kept.repo, &first.manifest, &record_options(&server, SOON), &*quiet()).await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (-1, 'on the first timeline')").await.unwrap();
    let end = position(&client).await;
    receiver.durable(end).await;
    receiver.stop().await;
    drop(client);
    let there = replica.client_to("app").await;
    let replayed = format!("SELECT (pg_last_wal_replay_lsn() >= '{end}')::int::bigint");
    wait_until(SOON, || async { numbers(&there, &replayed).await == [1] }).await;

    let mut primary = server;
    let ended = during(&kept, options(&replica, Kind::Full), 60 << 20, || async {
        primary.kill().await;
        there.batch_execute("SELECT pg_promote()").await.unwrap();
    })
    .await;
    let error = ended.unwrap_err();
    assert!(matches!(error, BackupError::Sql(_)), "{error}");
    assert_eq!(list(&kept.repo, id).await.unwrap().backups.len(), 1, "what was copied before and after is no backup");

    there.batch_execute("INSERT INTO t VALUES (-2, 'on the second')").await.unwrap();
    let mut receiver = Receiver::start(&kept.repo, replica.params());
    receiver.durable(position(&there).await).await;
    // while only the backup of before is there
    let proof = proven(&kept, id, &replica).await.unwrap();
    assert_eq!((proof.plan.backups.as_slice(), proof.plan.timeline), ([first.manifest.label.clone()].as_slice(), 2));
    assert_eq!((proof.tables, proof.rows), (before.tables(), before.rows()), "compared on the way, on timeline 1");
    assert_eq!(proof.tables_left_out, [""; 0]);

    let made = back_up(&kept.repo, &replica, Kind::Full).await;
    assert_eq!(made.manifest.timeline, 2);
    assert!(made.taken_over_bytes >= 32 << 20, "{}", made.taken_over_bytes);
    receiver.durable(position(&there).await).await;
    for label in [&first.manifest.label, &made.manifest.label] {
        let restored =
            restore_to(&kept.repo, id, &replica, |options| options.backup = Some(label.clone())).await.unwrap();
        let copy = restored.promoted("app").await;
        assert_eq!(numbers(&copy, "SELECT n FROM t WHERE n < 0 ORDER BY n").await, [-2, -1]);
        assert_eq!(numbers(&copy, "SELECT count(*) FROM t").await, [700_002]);
    }
    receiver.stop().await;
}

/// The server that is copied dies and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server() {
    let mut server = TestServer::start().await;
    let client = server.create_database("app").await;
    fill(&client).await;
    drop(client);
    let kept = repository(&server.folder().join("repo"));
    let of = options(&server, Kind::Full);
    let error = during(&kept, of, 60 << 20, || server.kill()).await.unwrap_err();
    assert!(error.is_lost_server(), "{error}");
    server.start_again().await;
    let client = server.client_to("app").await;
    let id = system_id(&client).await;
    assert_eq!(list(&kept.repo, id).await.unwrap().backups.len(), 0);
    client.batch_execute("INSERT INTO t VALUES (-1, 'after the crash')").await.unwrap();
    let receiver = Receiver::start(&kept.repo, server.params());
    let made = back_up(&kept.repo, &server, Kind::Full).await;
    assert!(made.taken_over_bytes >= 32 << 20, "{}", made.taken_over_bytes);
    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    assert_eq!(numbers(&restored.promoted("app").await, "SELECT count(*) FROM t").await, [700_001]);
    receiver.stop().await;
}

/// Each request takes a third of a second: commits do not wait for it, what waits is told, and all of it arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_bucket_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t (n bigint, filler text)").await.unwrap();
    let id = system_id(&client).await;
    let kept = s3::open(Location::S3(s3::location(&bucket)));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    bucket.faults().delay_ms.store(330, Ordering::SeqCst);

    let stop = Arc::new(AtomicBool::new(false));
    let writer = async {
        let (client, mut slowest, mut commits) = (server.client_to("app").await, std::time::Duration::ZERO, 0i64);
        while !stop.load(Ordering::SeqCst) {
            let begun = tokio::time::Instant::now();
            client
                .execute("INSERT INTO t VALUES ($1::bigint, repeat(md5($1::bigint::text), 1000))", &[&commits])
                .await
                .unwrap();
            (slowest, commits) = (slowest.max(begun.elapsed()), commits + 1);
        }
        (commits, slowest)
    };
    let work = async {
        let waits = |status: &ReceiveStatus| status.backlog_bytes() > 1 << 20;
        tokio::time::timeout(SOON, receiver.status.wait_for(waits)).await.unwrap().unwrap();
        let made = back_up(&kept.repo, &server, Kind::Full).await;
        stop.store(true, Ordering::SeqCst);
        made
    };
    let ((commits, slowest), made) = tokio::join!(writer, work);
    // a commit that waited for a request would take longer than one
    assert!(commits > 100 && slowest < std::time::Duration::from_secs(5), "{commits} {slowest:?}");
    receiver.durable(position(&client).await).await;
    assert_eq!(receiver.status.borrow().failing, None);
    let restored =
        restore_to(&kept.repo, id, &server, |of| of.backup = Some(made.manifest.label.clone())).await.unwrap();
    assert_eq!(numbers(&restored.promoted("app").await, "SELECT count(*) FROM t").await, [commits]);
    receiver.stop().await;
}

/// Thousands of small tables are a few requests, not one or several each (pgbackrest#2782).
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_small_files_are_few_requests() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    let server = TestServer::with_settings(&[("max_locks_per_transaction", "4096")]).await;
    let client = server.create_database("app").await;
    let tables = "DO $$ BEGIN FOR n IN 1..1500 LOOP EXECUTE format('CREATE TABLE small_%s AS SELECT %s AS n', n, n); END LOOP; END $$";
    client.batch_execute(tables).await.unwrap();
    let id = system_id(&client).await;
    let kept = s3::open(Location::S3(s3::location(&bucket)));
    let receiver = Receiver::start(&kept.repo, server.params());
    let made = back_up(&kept.repo, &server, Kind::Full).await;
    receiver.stop().await;
    assert!(made.manifest.files > 2_000, "{}", made.manifest.files);
    let (before, ..) = bucket.faults().seen();
    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    let (after, ..) = bucket.faults().seen();
    assert!(before < 400 && after - before < 50, "{before} to write, {} to read", after - before);
    assert_eq!(numbers(&restored.promoted("app").await, "SELECT n::bigint FROM small_1500").await, [1_500]);
}

/// A new cluster in a repository that has another already (plugin-barman-cloud#350), and retention of one alone.
#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_in_one_repository() {
    let first = TestServer::start().await;
    let second = TestServer::builder().own_identity().start().await;
    let kept = repository(&first.folder().join("repo"));
    let mut ids = Vec::new();
    for (server, number) in [(&first, 1), (&second, 2)] {
        let client = server.create_database("app").await;
        client.batch_execute(&format!("CREATE TABLE t AS SELECT {number}::bigint AS n")).await.unwrap();
        let receiver = Receiver::start(&kept.repo, server.params());
        back_up(&kept.repo, server, Kind::Full).await;
        receiver.stop().await;
        ids.push(system_id(&client).await);
    }
    ids.sort_unstable();
    assert_eq!(kept.repo.clusters().await.unwrap(), ids);
    for (server, number) in [(&first, 1), (&second, 2)] {
        let id = system_id(&server.client().await).await;
        let restored = restore_to(&kept.repo, id, server, |_| {}).await.unwrap();
        assert_eq!(numbers(&restored.promoted("app").await, "SELECT n FROM t").await, [number]);
    }
}
