//! A full backup and incremental ones over everything that makes block-level copies hard.

use crate::common::*;
use millrace_backup::{Kind, Step, VerifyOptions, plan::Target, verify};
use millrace_testkit::TestServer;
use tokio_util::sync::CancellationToken;

/// A checksum over all rows of all tables of a database, in the tables' order.
const CONTENT: &str = "
    SELECT coalesce(string_agg(name || ' ' || md5(query_to_xml(
        format('SELECT * FROM %s t ORDER BY t::text', name), true, false, '')::text), ', ' ORDER BY name), '')
    FROM (SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace) t";

async fn content(client: &millrace_pg::Connection) -> String {
    client.query_one(CONTENT, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn full_and_two_incrementals() {
    let server = TestServer::builder().settings(&[("autovacuum", "off")]).start().await;
    let client = server.create_database("app").await;
    let place = server.folder().join("space");
    std::fs::create_dir(&place).unwrap();
    server.spec().run_as.own(&place).unwrap();
    client.batch_execute(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", place.display())).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE big AS SELECT n, repeat('x', 300) AS filler FROM generate_series(1, 100000) AS n;
             ALTER TABLE big ADD PRIMARY KEY (n);
             CREATE TABLE shrinks AS SELECT n FROM generate_series(1, 50000) AS n;
             CREATE TABLE rewritten AS SELECT n FROM generate_series(1, 20000) AS n;
             CREATE TABLE dropped AS SELECT n FROM generate_series(1, 1000) AS n;
             CREATE TABLE truncated AS SELECT n FROM generate_series(1, 1000) AS n;
             CREATE TABLE spaced TABLESPACE elsewhere AS SELECT n FROM generate_series(1, 10000) AS n;
             CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n",
        )
        .await
        .unwrap();
    client.batch_execute("VACUUM FREEZE").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let none = back_up(&kept.repo, &server, Kind::Incremental).await;
    assert_eq!(none.full_because.as_deref(), Some("there is no backup to build on"));
    assert_eq!(none.manifest.kind, Kind::Full);

    client
        .batch_execute(
            "DELETE FROM big WHERE n % 1000 = 7;
             UPDATE big SET filler = 'new' WHERE n % 1000 = 8;
             DELETE FROM shrinks WHERE n > 100;
             DROP TABLE dropped;
             CREATE TABLE dropped AS SELECT n * 2 AS n FROM generate_series(1, 3000) AS n;
             TRUNCATE truncated;
             INSERT INTO truncated SELECT generate_series(1, 20);
             UPDATE spaced SET n = -n WHERE n < 50",
        )
        .await
        .unwrap();
    client.batch_execute("VACUUM FULL rewritten").await.unwrap();
    client.batch_execute("VACUUM shrinks").await.unwrap();
    // its pages keep the positions that they have in the template, far before the parent's start
    client.batch_execute("CREATE DATABASE copied TEMPLATE template0 STRATEGY FILE_COPY").await.unwrap();
    let first = back_up(&kept.repo, &server, Kind::Incremental).await;
    assert_eq!((first.manifest.kind, &first.manifest.parent), (Kind::Incremental, &Some(none.manifest.label.clone())));

    client.batch_execute("INSERT INTO big SELECT n, 'later' FROM generate_series(200001, 200100) AS n").await.unwrap();
    client.batch_execute("INSERT INTO shrinks SELECT generate_series(60000, 70000)").await.unwrap();
    let second = back_up(&kept.repo, &server, Kind::Incremental).await;
    assert_eq!(second.manifest.parent, Some(first.manifest.label.clone()));
    for created in [&none, &first, &second] {
        let manifest = &created.manifest;
        assert!(manifest.pages_damaged.is_empty(), "{:?}", manifest.pages_damaged);
    }
    let (whole, part) = (none.manifest.packed_bytes, second.manifest.packed_bytes);
    assert!(part * 4 < whole, "{part} of {whole} bytes were read into the second");
    client.batch_execute("INSERT INTO truncated VALUES (99)").await.unwrap();
    receiver.durable(position(&client).await).await;

    // without the log after it, so that nothing but the chain itself can have brought the rows
    for (created, expect_99) in [(&second, false), (&second, true), (&first, false)] {
        let space = server.folder().join(format!("space-{}-{expect_99}", created.manifest.label));
        let restored = restore_to(&kept.repo, id, &server, |options| {
            options.backup = Some(created.manifest.label.clone());
            options.target = if expect_99 { Target::Latest } else { Target::Consistent };
            let oid = created.manifest.tablespaces[0].oid;
            options.tablespaces.insert(oid, space.clone());
        })
        .await
        .unwrap();
        let copy = restored.promoted("app").await;
        let place: String = copy
            .query_one("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'elsewhere'", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(place, space.display().to_string());
        for sql in ["SELECT count(*) FROM unlogged", "VACUUM big", "VACUUM shrinks"] {
            copy.batch_execute(sql).await.unwrap();
        }
        if expect_99 {
            assert_eq!(content(&copy).await, content(&client).await);
        } else if created.manifest.label == second.manifest.label {
            copy.batch_execute("INSERT INTO truncated VALUES (99)").await.unwrap();
            assert_eq!(content(&copy).await, content(&client).await);
        } else {
            assert_eq!(numbers(&copy, "SELECT count(*) FROM big").await, [99_900]);
        }
        let other = restored.client_to("copied").await;
        assert!(numbers(&other, "SELECT count(*) FROM pg_class").await[0] > 300);
        copy.batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck").await.unwrap();
        let damage = "SELECT count(*) FROM pg_class c, LATERAL verify_heapam(c.oid) WHERE relkind = 'r'
                      AND relpersistence = 'p'";
        assert_eq!(numbers(&copy, damage).await, [0]);
    }

    let proof = proven(&kept, id, &server).await.unwrap();
    assert_eq!((proof.plan.backups.len(), proof.databases), (3, 4));
    assert!(proof.check_ms.is_some());

    let seen = std::sync::atomic::AtomicUsize::new(0);
    let options = VerifyOptions { threads: 2, deep: true };
    let report = verify(
        &kept.repo,
        id,
        &options,
        &|step| {
            if let Step::Verify { objects, .. } = step {
                seen.store(objects, std::sync::atomic::Ordering::SeqCst);
            }
        },
        &CancellationToken::new(),
    )
    .await
    .unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.backups, report.windows.len()), (3, 3));
    assert_eq!(seen.into_inner(), report.objects);
    receiver.stop().await;
}
