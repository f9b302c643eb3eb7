//! What is killed or has no room in the midst of backups.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use crate::{
    backup::with_backups_in,
    disk::{up_on_a_small_disk, within},
    harness::{Load, Platform, command, wait_until},
};

/// Backups that take some seconds, and are soon more than is kept.
const SLOW: &str = "repository = \"backups\"\nthrottle = \"16MiB\"\nkeep_full = 1\nwindow_days = 0";

pub(crate) fn start(platform: &Platform, words: &[&str]) -> Child {
    let dir = platform.dir();
    let mut command = command(&["--dir", dir.to_str().unwrap()]);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // what is removed meanwhile is not there
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}

/// The backups' objects, by the beginning of their names.
fn objects(platform: &Platform, named: &str) -> usize {
    let all = files(&platform.dir().join("backups"));
    let is = |path: &&PathBuf| {
        path.parent().unwrap().parent().is_some_and(|shelf| shelf.ends_with("backups"))
            && path.file_name().unwrap().to_str().unwrap().starts_with(named)
    };
    all.iter().filter(is).count()
}

/// Starts it anew until one is killed in time: on a busy machine it may have ended first.
#[track_caller]
fn kill_one(platform: &Platform, words: &[&str], what: &str, there: impl Fn() -> bool) {
    let tries = 5;
    let killed = (0..tries).any(|_| killed(start(platform, words), what, &there));
    assert!(killed, "{what}: it was too quick {tries} times");
}

/// Kills it once `there` is so; whether it still ran.
pub(crate) fn killed(mut child: Child, what: &str, mut there: impl FnMut() -> bool) -> bool {
    wait_until(what, || there() || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn whatever_is_killed_leaves_nothing_that_counts() {
    let platform = Platform::init();
    with_backups_in(&platform, SLOW);
    platform.up(&["--sample"]);
    let load = Load::on(&platform, "50");
    let listed = || platform.run(&["backup", "list", "--json"]).json().as_array().unwrap().len();
    let whole = |what: &str| {
        let said = platform.run(&["backup", "verify"]).ok();
        assert!(said.contains("all as they were written"), "{what}: {said}");
    };

    // a backup: when it has begun, in the midst of packs, and when all but the manifest may be there
    let begun = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1650549611";
    // a replica that restarts, because it gets the slots, makes no backup and answers nobody
    let begins_on = |node: &&str| {
        let said = platform.try_sql(node, begun);
        said.code == 0 && said.stdout.trim_end() != "0"
    };
    let asked = || ["primary", "replica1", "replica2"].iter().any(begins_on);
    let full = ["backup", "create", "--full"];
    kill_one(&platform, &full, "the backup to begin", asked);
    for packs in [1, 3] {
        let before = Cell::new(objects(&platform, "pack-"));
        kill_one(&platform, &full, "packs", || {
            let now = objects(&platform, "pack-");
            // what a try before this one has left is removed meanwhile
            before.set(before.get().min(now));
            now >= before.get() + packs
        });
    }
    let lists = objects(&platform, "files.json");
    killed(start(&platform, &full), "the list of files", || objects(&platform, "files.json") > lists);
    assert_eq!(listed(), objects(&platform, "manifest.json"), "what has no manifest is no backup");
    whole("after killed backups");
    platform.run(&["backup", "create", "--full"]).ok();
    platform.run(&["backup", "create"]).ok();
    platform.run(&["backup", "create", "--full"]).ok();
    let made = listed();
    whole("after the backups that followed");

    // what receives the log, and everything else of the platform; the servers go on
    for _ in 0..3 {
        platform.sql("primary", "SELECT pg_switch_wal()");
        platform.kill_platform();
        platform.up(&[]);
    }
    drop(load);
    let end = platform.sql(
        "primary",
        "INSERT INTO operational.customers (full_name) VALUES ('Last') RETURNING pg_current_wal_insert_lsn()",
    );
    wait_until("the log", || {
        let status = platform.run(&["wal", "status", "--json"]).json();
        let timelines = status["timelines"].as_array().unwrap();
        assert!(timelines.iter().all(|of| of["gaps"].as_array().unwrap().is_empty()), "{status}");
        let reached = timelines.last().unwrap()["last"].as_str().unwrap().to_owned();
        platform.sql("primary", &format!("SELECT '{reached}'::pg_lsn > '{}'::pg_lsn", end.lines().next().unwrap()))
            == "t"
    });

    // expiry: what is half removed does not count, and the next one goes on
    let manifests = objects(&platform, "manifest.json");
    let some_gone = || objects(&platform, "manifest.json") < manifests;
    killed(start(&platform, &["backup", "expire"]), "expiry to begin", some_gone);
    whole("after a killed expiry");
    assert!(listed() < made, "nothing was expired");
    platform.run(&["backup", "expire"]).ok();
    assert_eq!(listed(), 1);

    // a restore: the folder is not taken for a whole one, and taken again when that is wanted
    let to = platform.dir().join("restored");
    let words = ["backup", "restore", "--to", to.to_str().unwrap()];
    let some = || files(&to).len() > 20;
    if killed(start(&platform, &words), "files", some) {
        assert!(!to.join("global/pg_control").exists(), "a server could be started on half of it");
        let said = platform.run(&words).failed(1, "cannot restore into");
        assert!(said.contains("hint"), "{said}");
        fs::remove_dir_all(&to).unwrap();
    }
    platform.run(&words).ok();
    assert!(platform.run(&["backup", "prove"]).ok().contains("were counted after the backup"));
    platform.down();
}

#[test]
fn a_full_repository_stops_nothing_and_is_caught_up_with() {
    let platform = Platform::init();
    with_backups_in(&platform, "repository = \"backups\"");
    let repository = platform.dir().join("backups");
    let mut up = up_on_a_small_disk(&platform, &repository, 200, &["--sample"]);
    wait_until("the platform", || {
        assert!(up.try_wait().unwrap().is_none(), "{}", fs::read_to_string(platform.dir().join("up.out")).unwrap());
        platform.run(&["status", "--json"]).code == 0
            && platform.try_sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments").code == 0
            && platform.status()["backup"]["connected"] == true
    });
    let ballast = within(&platform, &repository).join("ballast");
    let fill = || {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    };
    let write = || {
        platform.sql(
            "primary",
            "INSERT INTO operational.customers (full_name) SELECT 'Full ' || n FROM generate_series(1, 500) AS n",
        )
    };
    let backup = || platform.status()["backup"].clone();
    wait_until("the platform to say that the log is not archived", || {
        fill();
        write();
        !backup()["failing"].is_null()
    });
    let text = platform.run(&["status"]).ok();
    assert!(text.contains("the log is not archived") && text.contains("has it room?"), "{text}");
    // the primary goes on
    write();

    fs::remove_file(&ballast).unwrap();
    let position = platform.sql("primary", "SELECT pg_current_wal_flush_lsn()");
    wait_until("the archive to catch up", || {
        let backup = backup();
        let durable = backup["durable"].as_str().unwrap();
        backup["failing"].is_null()
            && platform.sql("primary", &format!("SELECT '{durable}'::pg_lsn >= '{position}'::pg_lsn")) == "t"
    });
    platform.down();
    up.wait().unwrap();
}
