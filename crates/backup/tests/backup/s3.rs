//! Everything that goes into a bucket of S3 and comes back from it, also from one that refuses and forgets to answer.

use std::{path::Path, sync::atomic::Ordering};

use millrace_backup::{
    BackupError, Kind, VerifyOptions, list,
    plan::Target,
    repo::{Location, Repository, S3Location},
    retention::{Retention, expire},
    seal::{Encryption, Keys, Sealing},
    verify,
    wal::{self, ReceiveStatus},
};
use millrace_base::{Clock, Secret, SystemClock};
use millrace_testkit::{Bucket, TestServer};
use tokio_util::sync::CancellationToken;

use crate::common::*;

pub(crate) fn location(bucket: &Bucket) -> S3Location {
    S3Location {
        endpoint: Some(bucket.endpoint()),
        region: "eu-central-1".to_owned(),
        bucket: Bucket::NAME.to_owned(),
        prefix: "loans".to_owned(),
        access_key: Secret::new(Bucket::ACCESS_KEY),
        secret_key: Secret::new(Bucket::SECRET_KEY),
        allow_http: true,
    }
}

pub(crate) fn open(location: Location) -> Kept {
    let (key, public) = Keys::generate();
    let sealing = Sealing::new(Encryption::to([public.as_str()]).unwrap());
    let repo = Repository::open(&location, sealing, Keys::parse(&key).unwrap()).unwrap();
    Kept { repo, key, folder: Path::new("in a bucket").to_owned() }
}

/// An error with all that it comes from.
pub(crate) fn chain(error: BackupError) -> String {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    said
}

async fn findings(repo: &Repository, id: u64) -> Vec<String> {
    let options = VerifyOptions { threads: 2, deep: true };
    let report = verify(repo, id, &options, &*quiet(), &CancellationToken::new()).await.unwrap();
    report.findings.into_iter().map(|finding| format!("{}: {}", finding.what, finding.problem)).collect()
}

/// Two backups and log into a bucket, and back from it; the rows are those of the server.
pub(crate) async fn there_and_back(location: Location) {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT n::bigint, repeat('x', 200) AS filler FROM generate_series(1, 50000) AS n",
        )
        .await
        .unwrap();
    let id = system_id(&client).await;
    let kept = open(location);
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let full = back_up(&kept.repo, &server, Kind::Full).await;
    client.batch_execute("UPDATE t SET n = -n WHERE n % 1000 = 3").await.unwrap();
    let made =
        millrace_backup::create(&kept.repo, &options(&server, Kind::Incremental), &*quiet(), &CancellationToken::new())
            .await;
    let part = made.unwrap_or_else(|e| panic!("{e} {:?}", receiver.status.borrow()));
    assert_eq!(part.manifest.parent, Some(full.manifest.label.clone()));
    for _ in 0..3 {
        client.batch_execute("INSERT INTO t VALUES (0); SELECT pg_switch_wal()").await.unwrap();
    }
    client.batch_execute("INSERT INTO t VALUES (100000)").await.unwrap();
    receiver.durable(position(&client).await).await;

    assert_eq!(findings(&kept.repo, id).await, Vec::<String>::new());
    assert_eq!(kept.repo.clusters().await.unwrap(), [id]);
    let sum = "SELECT sum(n)::bigint FROM t";
    let there = numbers(&client, sum).await;
    for backup in [&full, &part] {
        let restored = restore_to(&kept.repo, id, &server, |options| {
            options.backup = Some(backup.manifest.label.clone());
        });
        let restored = restored.await.unwrap();
        assert_eq!(numbers(&restored.promoted("app").await, sum).await, there, "{}", restored.log());
    }
    let consistent = restore_to(&kept.repo, id, &server, |options| options.target = Target::Consistent).await.unwrap();
    assert_eq!(numbers(&consistent.promoted("app").await, "SELECT count(*) FROM t").await, [50_000]);

    // what is expired is gone from the bucket, and what stays is whole
    let newer = back_up(&kept.repo, &server, Kind::Full).await;
    receiver.stop().await;
    let retention = Retention { full_backups: 1, ..Retention::default() };
    expire(&kept.repo, id, &retention, SystemClock::new().wall(), false).await.unwrap();
    let left: Vec<String> = list(&kept.repo, id).await.unwrap().backups.into_iter().map(|b| b.label).collect();
    assert_eq!(left, [newer.manifest.label]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_into_a_bucket_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    there_and_back(Location::S3(location(&bucket))).await;
    assert!(bucket.folder().join("loans").is_dir(), "objects lie below the prefix");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_refuses_and_forgets_to_answer() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    bucket.faults().refused_every.store(5, Ordering::SeqCst);
    bucket.faults().unanswered_every.store(7, Ordering::SeqCst);
    there_and_back(Location::S3(location(&bucket))).await;
    let (all, refused, unanswered) = bucket.faults().seen();
    assert!(all > 50 && refused > all / 10 && unanswered > all / 20, "{all} {refused} {unanswered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let kept = open(Location::S3(location(&bucket)));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    bucket.faults().away.store(true, Ordering::SeqCst);
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 1000) AS n").await.unwrap();
    let failing = |status: &ReceiveStatus| status.failing.is_some() && status.backlog_bytes() > 0;
    let seen = tokio::time::timeout(SOON, receiver.status.wait_for(failing)).await.unwrap().unwrap().clone();
    let said = seen.failing.unwrap_or_default();
    assert!(said.contains("503") || said.contains("SlowDown"), "{said}");
    bucket.faults().away.store(false, Ordering::SeqCst);
    receiver.durable(position(&client).await).await;
    assert_eq!(receiver.status.borrow().failing, None);
    receiver.stop().await;
    let status = wal::status(&kept.repo, system_id(&client).await).await.unwrap();
    assert!(status.timelines.iter().all(|timeline| timeline.gaps.is_empty()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_and_buckets_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    let asked = |change: fn(&mut S3Location)| {
        let mut location = location(&bucket);
        change(&mut location);
        async move { open(Location::S3(location)).repo.clusters().await.unwrap_err() }
    };
    let said = chain(asked(|s3| s3.secret_key = Secret::new("another")).await);
    assert!(said.contains("s3://box/loans") && said.contains("SignatureDoesNotMatch"), "{said}");
    let said = chain(asked(|s3| s3.access_key = Secret::new("nobody")).await);
    assert!(said.contains("InvalidAccessKeyId") || said.contains("403"), "{said}");
    let said = chain(asked(|s3| s3.bucket = "other".to_owned()).await);
    assert!(said.contains("NoSuchBucket"), "{said}");
    let said = chain(asked(|s3| s3.endpoint = Some("http://127.0.0.1:9".to_owned())).await);
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

/// Requests that `work` sends.
async fn requests(bucket: &Bucket, work: impl Future<Output = ()>) -> u64 {
    let before = bucket.faults().seen().0;
    work.await;
    bucket.faults().seen().0 - before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_log_is_found_among_thousands_without_listing_them() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::serve(folder.path()).await;
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let id = system_id(&client).await;
    let kept = open(Location::S3(location(&bucket)));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    let mut names = Vec::new();
    for _ in 0..2 {
        let sql = "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_create_restore_point('here')";
        names.push(client.query_one(sql, &[]).await.unwrap().get::<_, String>(0));
    }
    receiver.durable(position(&client).await).await;
    receiver.stop().await;

    // 2,500 of another timeline before them, and as many after them
    let archive = bucket.folder().join(format!("loans/{id}/wal"));
    let checksums = format!("{}.{}", "a".repeat(32), "b".repeat(32));
    for number in 0..2_500 {
        let (high, low) = (1 + number / 256, number % 256);
        for (timeline, folder) in [("00000001", "00000001"), ("00000000", "00000000")] {
            std::fs::create_dir_all(archive.join(folder)).unwrap();
            let name = format!("{timeline}{high:08X}{low:08X}.{checksums}.zst.age");
            std::fs::write(archive.join(folder).join(name), "").unwrap();
        }
    }
    let to = folder.path().join("fetched");
    for name in &names {
        let asked = requests(&bucket, async { wal::fetch(&kept.repo, id, name, &to).await.unwrap() });
        assert_eq!(asked.await, 3, "archive.json, one page, the object");
        assert_eq!(std::fs::metadata(&to).unwrap().len(), 16 << 20);
    }
    let listed = requests(&bucket, async { drop(wal::inventory(&kept.repo, id).await.unwrap()) }).await;
    assert!(listed >= 6, "{listed}: the whole archive has more than five pages");
    let absent = async {
        let error = wal::fetch(&kept.repo, id, "0000000100000000000000F0", &to).await.unwrap_err();
        assert!(matches!(error, BackupError::WalAbsent { .. }), "{error}");
    };
    assert_eq!(requests(&bucket, absent).await, 2);
    let absent = async {
        let error = wal::fetch(&kept.repo, id, "00000001.history", &to).await.unwrap_err();
        assert!(matches!(error, BackupError::WalAbsent { .. }), "{error}");
    };
    assert_eq!(requests(&bucket, absent).await, 1);
}
