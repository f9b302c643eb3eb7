//! A repository in two places: a folder, and a bucket that is away for a while.

use std::{fs, sync::atomic::Ordering};

use millrace_backup::{
    Kind, VerifyOptions,
    contents::record,
    plan::Target,
    repo::{Location, Repository},
    seal::{Encryption, Keys, Sealing},
    verify,
};
use millrace_testkit::{Bucket, TestServer};
use tokio_util::sync::CancellationToken;

use crate::{common::*, s3};

async fn damage(repo: &Repository, id: u64) -> Vec<String> {
    let options = VerifyOptions { threads: 2, deep: true };
    let report = verify(repo, id, &options, &*quiet(), &CancellationToken::new()).await.unwrap();
    report.findings.into_iter().map(|finding| format!("{}: {}", finding.what, finding.problem)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_backups_go_on_while_one_place_is_away_and_each_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(&folder.path().join("bucket")).await;
    let here = folder.path().join("here");
    let (key, public) = Keys::generate();
    let places = [Location::Folder(here.clone()), Location::S3(s3::location(&bucket))];
    let sealing = Sealing::new(Encryption::to([public.as_str()]).unwrap());
    let repo = Repository::open_all(&places, sealing, Keys::parse(&key).unwrap()).unwrap();
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let id = system_id(&client).await;
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 20000) AS n").await.unwrap();
    let mut receiver = Receiver::start(&repo, server.params());
    back_up(&repo, &server, Kind::Full).await;

    bucket.faults().away.store(true, Ordering::SeqCst);
    client.batch_execute("INSERT INTO t VALUES (-1); SELECT pg_switch_wal()").await.unwrap();
    receiver.durable(position(&client).await).await;
    let away = repo.away();
    assert!(away.len() == 1 && away[0].repository == "s3://box/loans", "{away:?}");
    let made = back_up(&repo, &server, Kind::Incremental).await;
    client.batch_execute("INSERT INTO t VALUES (-2)").await.unwrap();
    receiver.durable(position(&client).await).await;
    let stop = CancellationToken::new();
    repo.catch_up(&stop).await.unwrap();
    assert_eq!(repo.away().len(), 1);

    bucket.faults().away.store(false, Ordering::SeqCst);
    // while the log goes on
    let brought = repo.catch_up(&stop).await.unwrap();
    assert!(brought.objects > 3 && brought.bytes > 0, "{brought:?}");
    assert_eq!(repo.away(), []);
    client.batch_execute("INSERT INTO t VALUES (-3); SELECT pg_switch_wal()").await.unwrap();
    receiver.durable(position(&client).await).await;

    let sum = "SELECT sum(n)::bigint FROM t";
    let there = numbers(&client, sum).await;
    for (name, alone) in repo.alone() {
        let alone = alone.unwrap();
        assert_eq!(damage(&alone, id).await, Vec::<String>::new(), "{name}");
        let restored = restore_to(&alone, id, &server, |options| options.target = Target::Latest).await.unwrap();
        assert_eq!(numbers(&restored.promoted("app").await, sum).await, there, "{name}: {}", restored.log());
    }

    // what its tables hold is damaged in one place, and there in the other
    let recorded = record(&repo, &made.manifest, &record_options(&server, SOON), &*quiet()).await.unwrap();
    let contents = walk(&here).into_iter().find(|path| path.to_string_lossy().contains("/contents.")).unwrap();
    fs::write(&contents, "nothing of the kind").unwrap();
    receiver.durable(position(&client).await).await;
    let kept = Kept { repo: repo.clone(), key: key.clone(), folder: here.clone() };
    let proof = proven(&kept, id, &server).await.unwrap();
    assert_eq!((proof.tables, proof.rows), (recorded.tables(), recorded.rows()));
    assert_eq!(proof.tables_left_out, [""; 0]);

    // a disk with one of them is lost, and the other has got a flipped bit since: together they are whole
    let stored = walk(&bucket.folder().join("loans"));
    let pack = stored.iter().find(|path| path.to_string_lossy().contains("pack-00000")).unwrap();
    let mut bytes = fs::read(pack).unwrap();
    bytes[1_000] ^= 1;
    fs::write(pack, bytes).unwrap();
    let log = walk(&here).into_iter().filter(|path| path.to_string_lossy().contains("/wal/"));
    log.for_each(|path| fs::remove_file(path).unwrap());
    let restored = restore_to(&repo, id, &server, |options| options.target = Target::Latest).await.unwrap();
    assert_eq!(numbers(&restored.promoted("app").await, sum).await, there, "{}", restored.log());
    let of_each: Vec<Repository> = repo.alone().into_iter().map(|(_, alone)| alone.unwrap()).collect();
    let found = damage(&of_each[1], id).await;
    assert!(found.len() == 1 && found[0].contains("pack-00000"), "{found:?}");
    receiver.stop().await;
}
