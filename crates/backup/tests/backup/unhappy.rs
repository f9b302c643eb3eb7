//! What goes wrong: damage, keys, gaps, places that are taken, repositories that are away, timelines that end.

use std::{fs, io::Read, path::PathBuf};

use millrace_backup::{
    BackupError, CreateOptions, Kind, Step, VerifyOptions, VerifyReport,
    contents::{RecordOptions, record},
    create, list,
    plan::{PlanError, Target},
    plan_restore,
    repo::{Location, Repository},
    restore,
    retention::{Retention, expire},
    seal::{Encryption, Keys, Sealing},
    verify,
    wal::{self, ReceiveStatus},
};
use millrace_base::{Clock, SystemClock};
use millrace_testkit::TestServer;
use tokio_util::sync::CancellationToken;

use crate::common::*;

async fn verified(repo: &Repository, id: u64, deep: bool) -> VerifyReport {
    let options = VerifyOptions { threads: 2, deep };
    verify(repo, id, &options, &*quiet(), &CancellationToken::new()).await.unwrap()
}

/// All objects of a cluster in a folder.
fn objects(kept: &Kept, id: u64) -> Vec<PathBuf> {
    walk(&kept.folder.join(id.to_string()))
}

/// A server with one backup and some log, not archived any further.
async fn one_backup() -> (TestServer, Kept, u64) {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 1000) AS n").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    back_up(&kept.repo, &server, Kind::Full).await;
    for _ in 0..3 {
        client.batch_execute("INSERT INTO t VALUES (0); SELECT pg_switch_wal()").await.unwrap();
    }
    client.batch_execute("INSERT INTO t VALUES (-1)").await.unwrap();
    receiver.durable(position(&client).await).await;
    receiver.stop().await;
    (server, kept, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_gaps_and_keys() {
    let (server, kept, id) = one_backup().await;
    let backup = list(&kept.repo, id).await.unwrap().backups.remove(0);
    // nothing archives any more
    let options = RecordOptions { wal_wait: std::time::Duration::ZERO, ..record_options(&server, SOON) };
    record(&kept.repo, &backup, &options, &*quiet()).await.unwrap();
    assert_eq!(verified(&kept.repo, id, true).await.findings, []);

    // a flipped bit of any object is found, and the object named
    for path in objects(&kept, id) {
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 4;
        fs::write(&path, &damaged).unwrap();
        let name = path.strip_prefix(&kept.folder).unwrap().to_str().unwrap();
        if name.ends_with("archive.json") {
            assert!(wal::status(&kept.repo, id).await.unwrap_err().to_string().contains(name));
        } else {
            let found = verified(&kept.repo, id, false).await.findings;
            assert!(found.len() == 1 && found[0].what == name, "{name}: {found:?}");
        }
        fs::write(&path, &whole).unwrap();
    }
    let pack = objects(&kept, id).into_iter().find(|path| path.to_str().unwrap().contains("/pack-")).unwrap();

    // the age format, read by the library's own reader rather than ours, and zstd
    let key: age::x25519::Identity = kept.key.reveal().parse().unwrap();
    let plain = age::decrypt(&key, &fs::read(&pack).unwrap()).unwrap();
    let mut content = Vec::new();
    zstd::stream::read::Decoder::new(plain.as_slice()).unwrap().read_to_end(&mut content).unwrap();
    assert!(content.windows(2).any(|two| two == b"15"), "a pack holds PG_VERSION");

    // a restore from a damaged pack names it
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    fs::write(&pack, &damaged).unwrap();
    let error = restore_to(&kept.repo, id, &server, |_| {}).await.err().unwrap();
    assert!(matches!(&error, BackupError::Damaged { object, .. } if pack.ends_with(object)), "{error}");
    fs::write(&pack, &whole).unwrap();

    // another key
    let (other, _) = Keys::generate();
    let location = Location::Folder(kept.folder.clone());
    let sealing = Sealing::new(Encryption::Off);
    let wrong = Repository::open(&location, sealing.clone(), Keys::parse(&other).unwrap()).unwrap();
    let error = restore_to(&wrong, id, &server, |_| {}).await.err().unwrap();
    assert!(error.to_string().starts_with("none of the given keys decrypts "), "{error}");
    let none = Repository::open(&location, sealing, Keys::default()).unwrap();
    let error = restore_to(&none, id, &server, |_| {}).await.err().unwrap();
    assert!(error.to_string().ends_with("is encrypted and no key was given"), "{error}");
    assert_eq!(list(&none, id).await.unwrap().backups.len(), 1, "listing needs no key");
    assert_eq!(verified(&none, id, false).await.findings, [], "nor does verifying");

    // a missing segment after the backup: the window ends there, and what lies beyond is refused
    let plan = plan_restore(&kept.repo, id, &Target::Latest, None, None).await.unwrap();
    let missing = plan.segments[1].file_name(16 << 20);
    let gone = objects(&kept, id).into_iter().find(|p| p.to_str().unwrap().contains(&format!("/{missing}."))).unwrap();
    let segment = fs::read(&gone).unwrap();
    fs::remove_file(&gone).unwrap();
    let status = wal::status(&kept.repo, id).await.unwrap();
    assert_eq!(status.timelines[0].gaps[0].first, missing, "{status:?}");
    assert!(verified(&kept.repo, id, false).await.findings.iter().any(|finding| finding.what == missing));
    let target = Target::Lsn { at: plan.window.to, inclusive: true };
    let error = plan_restore(&kept.repo, id, &target, None, None).await.unwrap_err();
    let BackupError::Plan(PlanError::OutsideWindow { windows, .. }) = &error else { panic!("{error}") };
    assert_eq!(windows[0].to, plan.segments[1].start(16 << 20));
    fs::write(&gone, segment).unwrap();

    // places that are taken
    let (_sandbox, spec) = place_beside(&server);
    for (place, words) in [(server.data_dir(), "a server runs there, or did"), (spec.folder.clone(), "it is not empty")]
    {
        let mut options = restore_options(&spec, Target::Latest);
        fs::write(spec.folder.join("something"), "of mine").unwrap();
        options.data_dir = place;
        let error = restore(&kept.repo, id, &options, &*quiet(), &CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().ends_with(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_named() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 5000) AS n").await.unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap();
    let path: String = client.query_one("SELECT pg_relation_filepath('t')", &[]).await.unwrap().get(0);
    let mut bytes = fs::read(server.data_dir().join(&path)).unwrap();
    bytes[8192 * 3 + 5000] ^= 1;
    fs::write(server.data_dir().join(&path), bytes).unwrap();
    let kept = repository(&server.folder().join("repo"));
    let receiver = Receiver::start(&kept.repo, server.params());
    let created = back_up(&kept.repo, &server, Kind::Full).await;
    assert_eq!(created.manifest.pages_damaged, [format!("{path}:3")]);
    let again = back_up(&kept.repo, &server, Kind::Incremental).await;
    assert!(again.full_because.unwrap().ends_with("holds damaged pages"));
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_away_is_waited_for() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    let log = kept.folder.join(system_id(&client).await.to_string()).join("wal");
    let aside = kept.folder.join("aside");
    fs::rename(&log, &aside).unwrap();
    fs::write(&log, "no folder").unwrap();
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 1000) AS n").await.unwrap();
    let failing = |status: &ReceiveStatus| status.failing.is_some() && status.backlog_bytes() > 0;
    let seen = tokio::time::timeout(SOON, receiver.status.wait_for(failing)).await.unwrap().unwrap().clone();
    let slot = "SELECT (pg_current_wal_flush_lsn() - restart_lsn)::bigint FROM pg_replication_slots";
    assert!(numbers(&client, slot).await[0] > 0, "the server keeps what is not durable: {seen:?}");
    fs::remove_file(&log).unwrap();
    fs::rename(&aside, &log).unwrap();
    receiver.durable(position(&client).await).await;
    assert_eq!(receiver.status.borrow().failing, None);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_switch_of_timelines_from_a_replica_and_expired() {
    let server = TestServer::builder().settings(&[("full_page_writes", "on")]).start().await;
    let client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t AS SELECT n::bigint FROM generate_series(1, 1000) AS n").await.unwrap();
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let replica = server.replica().await;
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let first = back_up(&kept.repo, &server, Kind::Full).await;
    client.batch_execute("INSERT INTO t VALUES (2001); CHECKPOINT").await.unwrap();
    let of_replica = back_up(&kept.repo, &replica, Kind::Full).await;
    assert!(of_replica.manifest.from_replica);
    client.batch_execute("INSERT INTO t VALUES (2002)").await.unwrap();
    let end = position(&client).await;
    receiver.durable(end).await;
    receiver.stop().await;
    let there = replica.client_to("app").await;
    let replayed = format!("SELECT (pg_last_wal_replay_lsn() >= '{end}')::int::bigint");
    millrace_testkit::wait_until(SOON, || async { numbers(&there, &replayed).await == [1] }).await;
    drop(client);
    let mut old = server;
    old.stop().await;
    there.batch_execute("SELECT pg_promote()").await.unwrap();
    there.batch_execute("INSERT INTO t VALUES (3001)").await.unwrap();
    let mut receiver = Receiver::start(&kept.repo, replica.params());
    receiver.durable(position(&there).await).await;
    let status = wal::status(&kept.repo, id).await.unwrap();
    assert_eq!(status.timelines.iter().map(|timeline| timeline.timeline).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(status.timelines[1].parent.unwrap().0, 1);

    // from a backup of the old timeline, over the switch, to the end of the new one
    for label in [&first.manifest.label, &of_replica.manifest.label] {
        let restored = restore_to(&kept.repo, id, &replica, |o| o.backup = Some(label.clone())).await.unwrap();
        let copy = restored.promoted("app").await;
        assert_eq!(numbers(&copy, "SELECT n FROM t WHERE n > 1000 ORDER BY n").await, [2001, 2002, 3001]);
        assert_eq!(numbers(&copy, "SELECT timeline_id::bigint FROM pg_control_checkpoint()").await, [3]);
    }
    // the old timeline, by name
    let restored = restore_to(&kept.repo, id, &replica, |o| o.timeline = Some(1)).await.unwrap();
    let copy = restored.promoted("app").await;
    assert_eq!(numbers(&copy, "SELECT n FROM t WHERE n > 1000 ORDER BY n").await, [2001, 2002]);
    drop((copy, restored));

    let incremental = back_up(&kept.repo, &replica, Kind::Incremental).await;
    assert_eq!((incremental.manifest.kind, incremental.manifest.timeline), (Kind::Incremental, 2));
    assert_eq!(incremental.manifest.parent.as_ref(), Some(&of_replica.manifest.label));

    // nothing is kept but the newest and what it builds on
    let (now, keep) = (SystemClock::new().wall(), Retention::default());
    let dry = expire(&kept.repo, id, &keep, now, true).await.unwrap();
    assert_eq!(dry.decision.expired, std::slice::from_ref(&first.manifest.label));
    assert_eq!(list(&kept.repo, id).await.unwrap().backups.len(), 3, "a dry run removes nothing");
    let done = expire(&kept.repo, id, &keep, now, false).await.unwrap();
    assert_eq!(done, dry);
    assert_eq!(list(&kept.repo, id).await.unwrap().backups.len(), 2);
    receiver.durable(position(&there).await).await;
    let restored = restore_to(&kept.repo, id, &replica, |_| {}).await.unwrap();
    assert_eq!(numbers(&restored.promoted("app").await, "SELECT count(*) FROM t").await, [1003]);
    receiver.stop().await;
    assert_eq!(verified(&kept.repo, id, true).await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_log_a_backup_does_not_count() {
    let server = TestServer::start().await;
    let id = system_id(&server.client().await).await;
    let kept = repository(&server.folder().join("repo"));
    let mut options = options(&server, Kind::Full);
    options.wal_wait = Some(std::time::Duration::from_millis(300));
    let error = create(&kept.repo, &options, &*quiet(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::WalNotArchived { .. }), "{error}");
    let catalog = list(&kept.repo, id).await.unwrap();
    assert!(catalog.backups.is_empty(), "{catalog:?}");
    options.data_dir = kept.folder.clone();
    let error = create(&kept.repo, &options, &*quiet(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::Server(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_is_lost_is_a_gap_that_is_told() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let id = system_id(&client).await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    client.batch_execute("CREATE TABLE t (n bigint)").await.unwrap();
    client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    receiver.durable(position(&client).await).await;
    receiver.stop().await;
    let gone = || async { client.execute("SELECT pg_drop_replication_slot('archive')", &[]).await.is_ok() };
    millrace_testkit::wait_until(SOON, gone).await;
    for _ in 0..4 {
        for sql in ["INSERT INTO t VALUES (1)", "SELECT pg_switch_wal()", "CHECKPOINT"] {
            client.batch_execute(sql).await.unwrap();
        }
    }
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    let mut receiver = Receiver::start(&kept.repo, server.params());
    receiver.durable(position(&client).await).await;
    let status = wal::status(&kept.repo, id).await.unwrap();
    assert_eq!(status.timelines[0].gaps.len(), 1, "{status:?}");
    // a backup after the gap is as good as any
    back_up(&kept.repo, &server, Kind::Full).await;
    receiver.stop().await;
    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    assert_eq!(numbers(&restored.promoted("app").await, "SELECT count(*) FROM t").await, [5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_leaves_nothing_that_counts() {
    let server = TestServer::start().await;
    let id = system_id(&server.client().await).await;
    let kept = repository(&server.folder().join("repo"));
    let receiver = Receiver::start(&kept.repo, server.params());
    let (begun, stop) = (CancellationToken::new(), CancellationToken::new());
    let tell = |step| {
        if matches!(step, Step::Copy { .. }) {
            begun.cancel();
        }
    };
    let slow = CreateOptions { bytes_per_second_max: Some(6 << 20), threads: 1, ..options(&server, Kind::Full) };
    // dropped in the midst of it, so that nothing of ours cleans up: as if the process had been killed
    tokio::select! {
        made = create(&kept.repo, &slow, &tell, &stop) => panic!("it was not slow enough: {made:?}"),
        () = begun.cancelled() => {}
    }
    stop.cancel();
    let catalog = list(&kept.repo, id).await.unwrap();
    assert_eq!((catalog.backups.len(), catalog.unfinished.len()), (0, 1));
    // the server notices that the session is gone, and with it the lock
    let again = options(&server, Kind::Full);
    let (quiet, go_on) = (quiet(), CancellationToken::new());
    millrace_testkit::wait_until(SOON, || async {
        match create(&kept.repo, &again, &*quiet, &go_on).await {
            Ok(_) => true,
            Err(BackupError::Busy) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    let catalog = list(&kept.repo, id).await.unwrap();
    assert_eq!((catalog.backups.len(), catalog.unfinished.len()), (1, 1));
    let restored = restore_to(&kept.repo, id, &server, |_| {}).await.unwrap();
    restored.promoted("postgres").await;
    // what it left is collected a day later, not before
    let (now, keep) = (SystemClock::new().wall(), Retention::default());
    assert_eq!(expire(&kept.repo, id, &keep, now, false).await.unwrap().garbage.len(), 0);
    let later = millrace_base::Micros(now.0 + 25 * 3_600_000_000);
    assert_eq!(expire(&kept.repo, id, &keep, later, false).await.unwrap().garbage.len(), 1);
    assert_eq!(list(&kept.repo, id).await.unwrap().unfinished.len(), 0);
    receiver.stop().await;
}

/// Its sender ends the stream in the midst of it, without the end that a promotion gives.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_is_waited_for() {
    let mut server = TestServer::start().await;
    let kept = repository(&server.folder().join("repo"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    for _ in 0..4 {
        let client = server.client().await;
        receiver.durable(position(&client).await).await;
        client
            .batch_execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 100000) AS n; DROP TABLE t")
            .await
            .unwrap();
        drop(client);
        server.stop().await;
        server.start_again().await;
    }
    receiver.durable(position(&server.client().await).await).await;
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_after_the_other_is_not_two_at_once() {
    let server = TestServer::start().await;
    let kept = repository(&server.folder().join("repo"));
    let receiver = Receiver::start(&kept.repo, server.params());
    let client = server.client().await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    for _ in 0..3 {
        back_up(&kept.repo, &server, Kind::Full).await;
        // not only soon
        assert_eq!(numbers(&client, locks).await, [0]);
    }
    receiver.stop().await;
}
