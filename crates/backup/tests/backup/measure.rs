//! How long it takes, on a cluster of about a gigabyte. Run by hand: `--run-ignored only --no-capture`.

use std::time::Instant;

use millrace_backup::{Kind, ProgressFn, Step, VerifyOptions, create, plan::Target, restore, verify};
use millrace_testkit::TestServer;
use tokio_util::sync::CancellationToken;

use crate::common::*;

/// Tells when each phase is heard of first and last.
#[expect(clippy::print_stderr, reason = "what it measures is for whoever runs it")]
fn phases() -> Box<ProgressFn<'static>> {
    let begun = Instant::now();
    Box::new(move |step| {
        let ends = match step {
            Step::Copy { bytes, bytes_total } => bytes == bytes_total,
            Step::Log { segments, segments_total } => segments == segments_total,
            Step::Checkpoint | Step::WaitForLog { .. } => true,
            Step::Verify { .. } => false,
        };
        if ends {
            eprintln!("  {step:?} at {:?}", begun.elapsed());
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, for a minute"]
#[expect(clippy::print_stderr, reason = "what it measures is for whoever runs it")]
async fn a_cluster_of_a_gigabyte() {
    let server = TestServer::builder().settings(&[("max_wal_size", "8GB"), ("autovacuum", "off")]).start().await;
    let client = server.create_database("app").await;
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    for sql in [
        "CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))",
        "INSERT INTO accounts SELECT n, n / 100000, 0, '' FROM generate_series(1, 7000000) AS n",
        "VACUUM FREEZE",
        "CHECKPOINT",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    let begun = Instant::now();
    let behind = receiver.status.borrow().backlog_bytes();
    receiver.durable(position(&client).await).await;
    eprintln!("archive: the last {} MB took {:?}", behind >> 20, begun.elapsed());
    for kind in [Kind::Full, Kind::Incremental] {
        if kind == Kind::Incremental {
            client.batch_execute("UPDATE accounts SET abalance = 1 WHERE aid % 400 = 3").await.unwrap();
            client.batch_execute("CHECKPOINT").await.unwrap();
            receiver.durable(position(&client).await).await;
        }
        let begun = Instant::now();
        let phases = phases();
        let options = options(&server, kind);
        let made = create(&kept.repo, &options, &*phases, &CancellationToken::new()).await.unwrap().manifest;
        eprintln!(
            "{kind:?}: {:?}, {} MB of data, {} MB packed, {} MB stored",
            begun.elapsed(),
            made.data_bytes >> 20,
            made.packed_bytes >> 20,
            made.stored_bytes >> 20
        );
    }
    let (_sandbox, spec) = place_beside(&server);
    let begun = Instant::now();
    let to = restore_options(&spec, Target::Consistent);
    restore(&kept.repo, id, &to, &*phases(), &CancellationToken::new()).await.unwrap();
    eprintln!("restore of both: {:?}", begun.elapsed());
    let begun = Instant::now();
    let options = VerifyOptions { threads: 2, deep: false };
    let report = verify(&kept.repo, id, &options, &*quiet(), &CancellationToken::new()).await.unwrap();
    eprintln!("verify of {} MB: {:?}", report.bytes >> 20, begun.elapsed());
    assert_eq!(report.findings, []);
    receiver.stop().await;
}
