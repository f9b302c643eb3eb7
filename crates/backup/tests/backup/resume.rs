//! Backups that do not end, and what the next ones take over of them.

use std::{path::Path, sync::atomic::Ordering};

use millrace_backup::{
    BackupError, CreateOptions, Created, Kind, Step, VerifyOptions, create, list,
    repo::{Location, Repository},
    retention::{Retention, expire},
    seal::{Encryption, Keys, Sealing},
    verify,
};
use millrace_base::{Clock, Micros, SystemClock};
use millrace_pg::Connection;
use millrace_testkit::{Bucket, TestServer, wait_until};
use tokio_util::sync::CancellationToken;

use crate::{common::*, s3};

/// Three chunks of a table that does not compress to nothing.
async fn fill(server: &TestServer) -> Connection {
    let client = server.create_database("app").await;
    let table = "CREATE TABLE t AS SELECT n::bigint, md5(n::text) || md5((-n)::text) || md5((n + 7)::text) AS filler
                 FROM generate_series(1, 600000) AS n";
    // whoever reads rows for the first time marks them as committed: not later
    for sql in [table, "VACUUM (FREEZE) t", "CHECKPOINT"] {
        client.batch_execute(sql).await.unwrap();
    }
    client
}

const SUM: &str = "SELECT sum(hashtextextended(t::text, 0) % 1000003)::bigint FROM t";

/// So slow that notes are written meanwhile.
fn slow(server: &TestServer, kind: Kind) -> CreateOptions {
    CreateOptions { bytes_per_second_max: Some(24 << 20), threads: 1, ..options(server, kind) }
}

/// Makes a backup until so much has been read, and lets it fall: nothing of ours cleans up, as if it had been killed.
async fn dies(repo: &Repository, options: &CreateOptions, after: u64) {
    let (reached, stop) = (CancellationToken::new(), CancellationToken::new());
    let tell = |step| {
        if matches!(step, Step::Copy { bytes, .. } if bytes >= after) {
            reached.cancel();
        }
    };
    tokio::select! {
        made = create(repo, options, &tell, &stop) => panic!("it was not slow enough: {made:?}"),
        () = reached.cancelled() => {}
    }
    stop.cancel();
}

/// The server notices a little later that the session of one that died is gone, and with it the lock.
async fn made(repo: &Repository, options: &CreateOptions) -> Created {
    let (quiet, stop) = (quiet(), CancellationToken::new());
    let made = std::cell::OnceCell::new();
    wait_until(SOON, || async {
        match create(repo, options, &*quiet, &stop).await {
            Ok(created) => made.set(created).is_ok(),
            Err(BackupError::Busy) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    made.into_inner().unwrap()
}

async fn assert_whole(repo: &Repository, id: u64) {
    let options = VerifyOptions { threads: 2, deep: true };
    let report = verify(repo, id, &options, &*quiet(), &CancellationToken::new()).await.unwrap();
    assert_eq!(report.findings, []);
}

fn open(folder: &Path, key: &(millrace_base::Secret, String)) -> Repository {
    let sealing = Sealing::new(Encryption::to([key.1.as_str()]).unwrap());
    Repository::open(&Location::Folder(folder.to_owned()), sealing, Keys::parse(&key.0).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_that_died_has_brought_is_not_brought_again() {
    let server = TestServer::start().await;
    let client = fill(&server).await;
    let id = system_id(&client).await;
    let folder = server.folder().join("repo");
    let (key, other) = (Keys::generate(), Keys::generate());
    let repo = open(&folder, &key);
    let receiver = Receiver::start(&repo, server.params());
    dies(&repo, &slow(&server, Kind::Full), 80 << 20).await;
    assert_eq!(list(&repo, id).await.unwrap().unfinished.len(), 1);

    // what has changed meanwhile is brought anew: the last of the chunks, and a new table
    let change = "UPDATE t SET n = -n WHERE n > 599000; CREATE TABLE later AS SELECT 5::bigint AS n; CHECKPOINT";
    client.batch_execute(change).await.unwrap();
    let sealed_for_others = made(&open(&folder, &other), &options(&server, Kind::Full)).await;
    assert_eq!(sealed_for_others.taken_over_bytes, 0, "whoever has the old key could read it");
    let created = made(&repo, &options(&server, Kind::Full)).await;
    let taken = created.taken_over_bytes;
    assert!(taken >= 32 << 20 && taken < created.manifest.packed_bytes, "{taken} of {}", created.manifest.packed_bytes);
    assert!(receiver.status.borrow().failing.is_none());

    // it is whole by itself: what the other has left is collected a day later
    let (later, keep) = (Micros(SystemClock::new().wall().0 + 25 * 3_600_000_000), Retention::default());
    let expired = expire(&repo, id, &keep, later, false).await.unwrap();
    assert_eq!((expired.garbage.len(), expired.decision.expired.len()), (1, 1));
    assert_whole(&repo, id).await;
    let restored = restore_to(&repo, id, &server, |_| {}).await.unwrap();
    let copy = restored.promoted("app").await;
    assert_eq!(numbers(&copy, SUM).await, numbers(&client, SUM).await);
    assert_eq!(numbers(&copy, "SELECT n FROM later").await, [5]);
    receiver.stop().await;
}

/// An incremental backup over one whose bucket goes away in its midst, twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_goes_away_in_the_midst_costs_little_of_what_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    let server = TestServer::start().await;
    let client = fill(&server).await;
    let id = system_id(&client).await;
    let kept = s3::open(Location::S3(s3::location(&bucket)));
    let receiver = Receiver::start(&kept.repo, server.params());
    back_up(&kept.repo, &server, Kind::Full).await;
    for sql in ["UPDATE t SET n = -n", "VACUUM (FULL, FREEZE) t", "CHECKPOINT"] {
        client.batch_execute(sql).await.unwrap();
    }
    for _ in 0..2 {
        let away = |step| {
            if matches!(step, Step::Copy { bytes, .. } if bytes >= 70 << 20) {
                bucket.faults().away.store(true, Ordering::SeqCst);
            }
        };
        let stop = CancellationToken::new();
        let error = create(&kept.repo, &slow(&server, Kind::Incremental), &away, &stop).await.unwrap_err();
        assert!(matches!(error, BackupError::Repository { .. }), "{error}");
        bucket.faults().away.store(false, Ordering::SeqCst);
    }
    let created = made(&kept.repo, &options(&server, Kind::Incremental)).await;
    assert_eq!(created.manifest.kind, Kind::Incremental);
    assert!(created.taken_over_bytes >= 32 << 20, "{}", created.taken_over_bytes);
    assert_whole(&kept.repo, id).await;
    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    assert_eq!(numbers(&restored.promoted("app").await, SUM).await, numbers(&client, SUM).await);
    receiver.stop().await;
}

/// One that is cancelled, and one whose log does not come: what they have brought stays, and no more than that.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_fail_again_and_again_do_not_fill_the_repository() {
    let server = TestServer::start().await;
    let client = fill(&server).await;
    let id = system_id(&client).await;
    let folder = server.folder().join("repo");
    let repo = open(&folder, &Keys::generate());
    let (halfway, stop) = (80 << 20, CancellationToken::new());
    let cancel = |step| {
        if matches!(step, Step::Copy { bytes, .. } if bytes >= halfway) {
            stop.cancel();
        }
    };
    let error = create(&repo, &slow(&server, Kind::Full), &cancel, &stop).await.unwrap_err();
    assert!(matches!(error, BackupError::Cancelled), "{error}");
    let packs = || {
        let files = walk(&folder);
        files.iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("pack-")).count()
    };
    let before = packs();
    assert!(before > 1);
    // nothing archives the log
    let vain = CreateOptions { wal_wait: Some(std::time::Duration::from_millis(100)), ..slow(&server, Kind::Full) };
    let mut after = Vec::new();
    for _ in 0..3 {
        let error = create(&repo, &vain, &*quiet(), &CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, BackupError::WalNotArchived { .. }), "{error}");
        after.push(packs());
    }
    // the first has brought the rest, the others nothing but what the server has changed meanwhile; no copies
    assert!(after[0] > before && after[2] <= after[0] + 2, "{before} {after:?}");
    let receiver = Receiver::start(&repo, server.params());
    let created = made(&repo, &options(&server, Kind::Full)).await;
    assert!(created.taken_over_bytes >= 32 << 20);
    let notes = |label: &str| {
        let files = walk(&folder.join(id.to_string()).join("backups").join(label));
        files.iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("begun-")).count()
    };
    assert_eq!(notes(&created.manifest.label), 0, "what has ended needs no notes");
    assert_whole(&repo, id).await;
    receiver.stop().await;
}
