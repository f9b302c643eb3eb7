//! A cluster brought back from its backups, in its own place.

use std::{fs, path::Path, process::Stdio};

use crate::{
    backup::with_backups,
    failover::safe,
    harness::{Load, Platform, command, wait_until},
};

const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

fn count(platform: &Platform, table: &str) -> u64 {
    platform.sql("primary", &format!("SELECT count(*) FROM operational.{table}")).parse().unwrap()
}

/// Waits until all that is committed now is in the repository.
fn archived(platform: &Platform) {
    let lsn = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    wait_until("the log in the repository", || {
        let status = platform.run(&["wal", "status", "--json"]).json();
        let reached = status["timelines"].as_array().unwrap().last().unwrap()["last"].as_str().unwrap().to_owned();
        platform.sql("primary", &format!("SELECT '{reached}'::pg_lsn >= '{lsn}'::pg_lsn")) == "t"
    });
}

#[test]
fn a_disaster_is_undone_and_a_lost_host_comes_back() {
    let platform = Platform::init();
    // beside the platform's data, as on another disk
    let repository = platform.dir().join("backups");
    with_backups(&platform);
    platform.up(&["--sample"]);
    platform.run(&["backup", "create"]).ok();
    let load = Load::on(&platform, "50");
    let before = count(&platform, "payments");
    wait_until("payments", || count(&platform, "payments") > before + 20);
    drop(load);
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()";
    wait_until("what customers began to end", || platform.sql("primary", busy) == "0");
    let (payments, customers) = (count(&platform, "payments"), count(&platform, "customers"));
    let moment = platform.sql("primary", NOW);
    // the disaster, and work that goes on after it
    platform.sql(
        "primary",
        "TRUNCATE operational.payments; INSERT INTO operational.customers (full_name) VALUES ('After It')",
    );
    archived(&platform);
    let wanted = ["backup", "restore", "--in-place", "--time", &moment];
    platform.run(&wanted).failed(1, "the platform runs");

    platform.down();
    platform.run(&wanted).failed(2, "nothing was restored");
    assert!(!platform.data().join("nodes/a/restoring").exists(), "nothing is made before it is confirmed");
    let said = platform.run(&[&wanted[..], &["--yes"]].concat()).ok();
    assert!(said.contains("is restored") && said.contains("next: millrace up"), "{said}");
    // three nodes and the warehouse are kept
    let kept: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("kept as it was: ")).collect();
    assert!(kept.len() >= 4 && kept.iter().all(|kept| Path::new(kept).exists()), "{said}");
    platform.up(&[]);
    assert_eq!((count(&platform, "payments"), count(&platform, "customers")), (payments, customers));
    // everything is as before: replicas, commits on two of them, capture, history
    safe(&platform);
    platform.prove();
    let promised = platform.sql("primary", "SHOW synchronous_standby_names");
    assert!(promised.contains("ANY"), "{promised}");
    let history = platform.run(&["cluster", "history"]).ok();
    assert!(history.contains("has been restored from backup"), "{history}");
    // the log goes on, without a gap, on a timeline of its own
    archived(&platform);
    let status = platform.run(&["wal", "status", "--json"]).json();
    let timelines = status["timelines"].as_array().unwrap();
    assert!(timelines.len() == 2 && timelines.iter().all(|of| of["gaps"].as_array().unwrap().is_empty()), "{status}");
    let made = platform.run(&["backup", "create"]).ok();
    // the one before is of a past that this cluster has left, or still shares: whichever it is, the proof tells
    assert!(made.contains("stored in"), "{made}");
    platform.run(&["backup", "prove"]).ok();

    // the host is lost: nothing is left but the repository, the configuration and the secrets
    platform.sql("primary", "INSERT INTO operational.customers (full_name) VALUES ('The Last One')");
    archived(&platform);
    platform.down();
    fs::remove_dir_all(platform.data()).unwrap();
    assert!(repository.exists());
    let said = platform.run(&["backup", "restore", "--in-place", "--yes"]).ok();
    assert!(!said.contains("kept as it was"), "{said}");
    platform.up(&[]);
    assert_eq!((count(&platform, "payments"), count(&platform, "customers")), (payments, customers + 1));
    safe(&platform);
    platform.prove();
    platform.run(&["backup", "create"]).ok();
    assert!(platform.run(&["backup", "verify"]).ok().contains("all as they were written"));
    platform.down();
}

#[test]
fn a_restore_that_fails_or_is_killed_changes_nothing() {
    let platform = Platform::init();
    with_backups(&platform);
    platform.up(&["--sample"]);
    platform.run(&["backup", "create"]).ok();
    let moment = platform.sql("primary", NOW);
    // it is there exactly as long as nothing is restored
    let after = "INSERT INTO operational.customers (full_name) VALUES ('After It')";
    platform.sql("primary", after);
    let is_as_it_was = |platform: &Platform| {
        platform.sql("primary", "SELECT count(*) FROM operational.customers WHERE full_name = 'After It'") == "1"
    };
    archived(&platform);
    let undone = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    platform.sql("primary", "INSERT INTO operational.customers (full_name) VALUES ('The Last One')");
    archived(&platform);
    platform.down();
    let restore = ["backup", "restore", "--in-place", "--time", &moment, "--yes"];
    let pack = walk(&platform.dir().join("backups"), "pack-00000");
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&pack, damaged).unwrap();
    platform.run(&restore).failed(1, "pack-00000");
    assert!(!platform.data().join("nodes/a/restoring").exists());
    fs::write(&pack, whole).unwrap();

    // killed while the restored server runs
    let dir = platform.dir();
    let mut killed = command(&[&["--dir", dir.to_str().unwrap()], &restore[..]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid_file = platform.data().join("nodes/a/restoring/data/postmaster.pid");
    wait_until("the restored server", || pid_file.exists());
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success(), "it was too quick to be killed");
    platform.up(&[]);
    assert!(is_as_it_was(&platform));
    assert!(!platform.data().join("nodes/a/restoring").exists(), "what was left is beside the platform");
    platform.prove();
    platform.down();
    platform.run(&restore).ok();
    platform.up(&[]);
    assert!(!is_as_it_was(&platform));
    archived(&platform);
    platform.down();

    // too early a moment was chosen: a later one lies on the timeline that was left
    platform.run(&["backup", "restore", "--in-place", "--lsn", &undone, "--timeline", "1", "--yes"]).ok();
    platform.up(&[]);
    assert!(is_as_it_was(&platform));
    platform.down();
}

/// Dies at each step from the replayed server to the end, goes on, and is at the old state or at the restored one.
#[test]
fn dying_between_the_steps_leaves_the_old_state_or_the_new_one() {
    let platform = Platform::init();
    with_backups(&platform);
    platform.up(&["--sample"]);
    platform.run(&["backup", "create"]).ok();
    let after =
        "INSERT INTO operational.customers (full_name) VALUES ('After It') RETURNING pg_current_wal_insert_lsn()";
    let moment = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    platform.sql("primary", after);
    let is_as_it_was = |platform: &Platform| {
        platform.sql("primary", "SELECT count(*) FROM operational.customers WHERE full_name = 'After It'") == "1"
    };
    archived(&platform);
    platform.down();
    let restore = ["backup", "restore", "--in-place", "--lsn", &moment, "--timeline", "1", "--yes"];
    let dir = platform.dir();
    // of three nodes: none, one, and both replicas have been moved aside, then the primary too
    for (failpoint, old) in [
        ("in_place.replayed", true),
        ("in_place.after_term", true),
        ("in_place.before_aside=2", true),
        ("in_place.before_aside=3", true),
        ("in_place.after_rename", false),
    ] {
        die(&dir, failpoint, &restore);
        platform.up(&[]);
        assert_eq!(is_as_it_was(&platform), old, "{failpoint}");
        platform.prove();
        platform.down();
    }
    // the primary's data has been moved and nothing is in its place: no new cluster is made there
    die(&dir, "in_place.before_rename", &restore);
    let mut up =
        command(&["--dir", dir.to_str().unwrap(), "up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("what is wrong to be said", || {
        let said = platform.run(&["status"]).stdout;
        said.contains("the primary's data directory is gone") && said.contains("restore a backup")
    });
    platform.down();
    assert!(up.wait().unwrap().success());
    platform.run(&restore).ok();
    platform.up(&[]);
    assert!(!is_as_it_was(&platform));
    safe(&platform);
    platform.prove();
    platform.down();
}

/// The command dies at a failpoint.
#[track_caller]
fn die(dir: &Path, failpoint: &str, arguments: &[&str]) {
    let armed = format!("{failpoint}:abort");
    let status = command(&[&["--dir", dir.to_str().unwrap(), "--failpoint", &armed], arguments].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), None, "{failpoint} was not reached");
}

fn walk(folder: &Path, name: &str) -> std::path::PathBuf {
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => waiting.push(entry.path()),
                false if entry.path().to_string_lossy().contains(name) => return entry.path(),
                false => {}
            }
        }
    }
    panic!("there is no {name}");
}
