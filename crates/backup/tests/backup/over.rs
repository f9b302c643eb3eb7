//! A restore over what is there.

use std::{fs, path::PathBuf, sync::Mutex};

use millrace_backup::{BackupError, Kind, Step, plan::Target, restore};
use millrace_pg::{ConnectParams, StopMode, connect};
use millrace_testkit::TestServer;
use tokio_util::sync::CancellationToken;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_same_stays_and_the_rest_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let kept = repository(folder.path());
    let server = TestServer::start().await;
    let space = server.spec().folder.join("space");
    fs::create_dir(&space).unwrap();
    server.spec().run_as.own(&space).unwrap();
    let client = server.create_database("app").await;
    let id = system_id(&client).await;
    client.batch_execute(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display())).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE large AS SELECT n::bigint, repeat('x', 200) AS filler FROM generate_series(1, 60000) AS n;
             CREATE TABLE changing AS SELECT n::bigint, repeat('y', 200) AS filler FROM generate_series(1, 20000) AS n;
             CREATE TABLE moved (n bigint) TABLESPACE apart; INSERT INTO moved SELECT generate_series(1, 1000)",
        )
        .await
        .unwrap();
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let full = back_up(&kept.repo, &server, Kind::Full).await;
    client.batch_execute("UPDATE changing SET n = -n WHERE n % 700 = 3").await.unwrap();
    let part = back_up(&kept.repo, &server, Kind::Incremental).await;
    client.batch_execute("INSERT INTO large VALUES (-5)").await.unwrap();
    receiver.durable(position(&client).await).await;
    receiver.stop().await;
    let sums = "SELECT sum(n)::bigint FROM large UNION ALL SELECT sum(n)::bigint FROM changing
                UNION ALL SELECT sum(n)::bigint FROM moved";
    let there = numbers(&client, sums).await;

    let (_sandbox, spec) = place_beside(&server);
    let apart: PathBuf = spec.folder.join("apart");
    let mut options = restore_options(&spec, Target::Latest);
    options.delta = true;
    options.tablespaces.insert(part.manifest.tablespaces[0].oid, apart.clone());
    let again = |options: millrace_backup::RestoreOptions, stop: CancellationToken| {
        let repo = kept.repo.clone();
        async move {
            let bytes = Mutex::new(None);
            let told = |step| {
                if let Step::Kept { bytes: found } = step {
                    *bytes.lock().unwrap() = Some(found);
                }
            };
            restore(&repo, id, &options, &told, &stop).await.map(|_| bytes.into_inner().unwrap())
        }
    };
    // where nothing is it is a restore like any other
    assert_eq!(again(options.clone(), CancellationToken::new()).await.unwrap(), None);
    let params = ConnectParams { port: spec.port, ..server.params() };
    let all = ["full", "part", "cancelled and begun anew", "a damaged page"];
    for round in all {
        spec.configure(None).unwrap();
        let mut postmaster = spec.start().await.unwrap();
        if let Err(error) = postmaster.ready(SOON).await {
            panic!("{round}: {error}\n{}", fs::read_to_string(&spec.log_file).unwrap_or_default());
        }
        let copy = connect(&params.to_database("app"), SOON).await.unwrap();
        millrace_testkit::wait_until(SOON, || async {
            !copy.query_one("SELECT pg_is_in_recovery()", &[]).await.unwrap().get::<_, bool>(0)
        })
        .await;
        assert_eq!(numbers(&copy, sums).await, there, "{round}");
        let strays = "SELECT count(*) FROM pg_class WHERE relname LIKE 'stray%'";
        assert_eq!(numbers(&copy, strays).await, [0], "{round}");
        let refused = again(options.clone(), CancellationToken::new()).await.unwrap_err();
        assert!(refused.to_string().contains("works in it"), "{refused}");
        copy.batch_execute(
            "CREATE TABLE stray AS SELECT generate_series(1, 5000) AS n; CREATE TABLE stray2 (n int) TABLESPACE apart;
             DELETE FROM moved WHERE n > 10; UPDATE changing SET n = n + 1 WHERE n % 900 = 1; DROP TABLE IF EXISTS none",
        )
        .await
        .unwrap();
        if round == "part" {
            copy.batch_execute("DROP TABLE large").await.unwrap();
        }
        let path: String = copy.query_one("SELECT pg_relation_filepath('changing')", &[]).await.unwrap().get(0);
        drop(copy);
        postmaster.stop(StopMode::Fast, SOON).await.unwrap();
        let mut options = options.clone();
        match round {
            "full" => options.backup = Some(full.manifest.label.clone()),
            "cancelled and begun anew" => {
                let stop = CancellationToken::new();
                stop.cancel();
                let ended = again(options.clone(), stop).await.unwrap_err();
                assert!(matches!(ended, BackupError::Cancelled), "{ended}");
                assert!(!spec.data_dir().join("global/pg_control").exists(), "no server starts on half of it");
            }
            "a damaged page" => {
                let file = spec.data_dir().join(&path);
                let mut bytes = fs::read(&file).unwrap();
                bytes[8_192 * 3 + 100] ^= 0xff;
                fs::write(&file, bytes).unwrap();
            }
            _ => {}
        }
        fs::write(spec.data_dir().join("base/stray"), "x").unwrap();
        let kept_bytes = again(options, CancellationToken::new()).await.unwrap().unwrap();
        // the other databases alone are more; looking at rows and vacuum change pages of the tables
        assert!(kept_bytes > 10 << 20, "{round}: {kept_bytes}");
        assert!(!spec.data_dir().join("base/stray").exists() && !spec.data_dir().join("millrace_restoring").exists());
        assert_eq!(
            fs::read_link(spec.data_dir().join(format!("pg_tblspc/{}", part.manifest.tablespaces[0].oid))).unwrap(),
            apart
        );
    }
}
