//! Throw-away copies that share blocks, where the file system of the platform's data can.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    backup::{configure, with_backups},
    backup_faults::{killed, start},
    harness::{Platform, wait_until},
};

const MEGABYTES: u64 = 4096;

fn used_bytes(folder: &Path) -> u64 {
    let said = std::process::Command::new("stat").args(["-f", "-c", "%b %f %S"]).arg(folder).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    let [blocks, free, size] = said.split_whitespace().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()[..]
    else {
        panic!("{said}")
    };
    (blocks - free) * size
}

fn names(folder: &Path) -> Vec<String> {
    let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // the lock of each port stays
    let mut names: Vec<String> = found.filter(|name| !name.ends_with(".lock")).collect();
    names.sort();
    names
}

fn listed(platform: &Platform) -> (Vec<String>, Value) {
    let all = platform.run(&["clone", "list", "--json"]).json();
    let ports = all["copies"].as_array().unwrap().iter().map(|copy| copy["port"].to_string()).collect();
    (ports, all["base"].clone())
}

/// With a table of some size as it is at the position, and changed after that; the position.
fn filled(platform: &Platform) -> String {
    // at the end nothing may be written that a copy would then have to bring
    platform.sql("primary", "ALTER SYSTEM SET autovacuum = off");
    platform.sql("primary", "SELECT pg_reload_conf()");
    platform.sql(
        "primary",
        "CREATE SCHEMA lab; CREATE TABLE lab.big AS SELECT n, md5(n::text) AS x FROM generate_series(1, 2000000) AS n",
    );
    // who reads rows for the first time changes pages, and a backup of a replica begins at a checkpoint of the primary: with
    // little log a copy differs little
    platform.sql("primary", "VACUUM (FREEZE) lab.big");
    platform.sql("primary", "CHECKPOINT");
    let at = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    let replayed = format!(
        "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{at}' AND application_name IN ('b', 'c')"
    );
    wait_until("the replicas", || platform.sql("primary", &replayed) == "2");
    platform.run(&["backup", "create"]).ok();
    platform.sql("primary", "INSERT INTO lab.big SELECT -n, 'then' FROM generate_series(1, 7) AS n");
    let at = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    platform.sql("primary", "DELETE FROM lab.big WHERE n < 1000");
    let beyond = platform.sql("primary", "SELECT pg_switch_wal()");
    wait_until("the log in the repository", || {
        let status = platform.run(&["wal", "status", "--json"]).json();
        let reached = status["timelines"][0]["last"].as_str().unwrap().to_owned();
        platform.sql("primary", &format!("SELECT '{reached}'::pg_lsn >= '{beyond}'::pg_lsn")) == "t"
    });
    at
}

const COUNTS: &str = "SELECT count(*), count(*) FILTER (WHERE n < 0), sum(n) FROM lab.big";
/// Of the position.
const THEN: &str = "2000007|7|2000000999972";

fn is_then(platform: &Platform, made: &Value) {
    assert_eq!(platform.sql(&made["port"].to_string(), COUNTS), THEN, "{made}");
}

#[test]
fn the_second_copy_shares_the_blocks_of_the_first_and_both_are_exact() {
    let platform = Platform::init();
    if let Err(why) = platform.mount_xfs(MEGABYTES) {
        println!("on a file system that cannot share blocks: {why}");
        return whole_copies(&platform);
    }
    with_backups(&platform);
    platform.up(&["--sample"]);
    let at = filled(&platform);
    let make = || platform.run(&["clone", "make", "--at", &at, "--json"]).json();
    let (clones, disk) = (platform.data().join("clones"), platform.data());
    assert_eq!(listed(&platform), (Vec::new(), Value::Null));
    platform.run(&["clone", "remove", "base"]).failed(1, "there is no base");
    platform.run(&["clone", "remove", "bases"]).failed(2, "the port of a copy, or `base`");

    let before = used_bytes(&disk);
    let first = make();
    let one = used_bytes(&disk);
    let (ports, base) = listed(&platform);
    let (label, bytes) = (base["label"].as_str().unwrap(), base["bytes"].as_u64().unwrap());
    assert_eq!((&ports, first["shared"].as_bool()), (&vec![first["port"].to_string()], Some(false)));
    assert_eq!(first["plan"]["backups"].as_array().unwrap().last().unwrap(), label);
    assert!(one - before >= bytes, "{before} {one} {base}");
    let second = make();
    let two = used_bytes(&disk);
    assert_eq!(second["shared"], true);
    println!(
        "{bytes} bytes; the first copy took {} and {} s, the second {} and {} s",
        one - before,
        first["seconds"],
        two - one,
        second["seconds"]
    );
    // both have their log, and what its replay has changed
    assert!((one - before) - (two - one) > bytes * 3 / 4, "{before} {one} {two} {base}");
    assert!(two - one < bytes * 3 / 4, "{one} {two} {base}");
    let said = platform.run(&["clone", "list"]).ok();
    assert!(said.contains("base: the files of ") && said.contains("to make copies from it quick"), "{said}");

    // what one writes neither the other nor a third sees
    for copy in [&first, &second] {
        is_then(&platform, copy);
    }
    let untouched = contents(&clones.join("base"));
    platform.sql(&first["port"].to_string(), "UPDATE lab.big SET x = 'first'; CHECKPOINT");
    platform.sql(&second["port"].to_string(), "DELETE FROM lab.big WHERE n % 2 = 0; CHECKPOINT");
    assert!(contents(&clones.join("base")) == untouched, "the base was written to");
    let said = platform.run(&["clone", "make", "--at", &at]).ok();
    assert!(said.contains("its blocks are shared with the base") && said.contains(" s\n"), "{said}");
    let known = [first["port"].to_string(), second["port"].to_string()];
    let third = listed(&platform).0.into_iter().find(|port| !known.contains(port));
    is_then(&platform, &serde_json::json!({ "port": third.unwrap().parse::<u16>().unwrap() }));
    let one_only = |x: &str| format!("SELECT count(*) FROM lab.big WHERE x = '{x}'");
    assert_eq!(platform.sql(&first["port"].to_string(), &one_only("first")), "2000007");
    assert_eq!(platform.sql(&second["port"].to_string(), &one_only("first")), "0");

    // one that is damaged is not used
    let large = walk(&clones.join("base/data")).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let large = fs::OpenOptions::new().write(true).open(large.unwrap()).unwrap();
    large.set_len(8192).unwrap();
    for shared in [false, true] {
        let made = make();
        assert_eq!(made["shared"], shared, "{made}");
        is_then(&platform, &made);
    }
    for port in listed(&platform).0 {
        platform.run(&["clone", "remove", &port]).ok();
    }
    assert_eq!(names(&clones), ["base"]);
    platform.run(&["clone", "remove", "base"]).ok();
    assert_eq!((listed(&platform), names(&clones)), ((Vec::new(), Value::Null), Vec::new()));

    // a table of the past leaves one too, and is quick with it
    let table = ["backup", "restore-table", "lab.big", "--at", &at, "--into"];
    let said = platform.run(&[table.as_slice(), &["found"]].concat()).ok();
    assert!(said.contains("has the 2000007 rows"), "{said}");
    assert_eq!(names(&clones), ["base"]);
    platform.down();
    platform.run(&["nuke", "--yes"]).ok();
    assert!(!clones.exists());
}

/// Without blocks that are shared: as ever, and nothing is left behind.
fn whole_copies(platform: &Platform) {
    with_backups(platform);
    platform.up(&["--sample"]);
    let at = filled(platform);
    for _ in 0..2 {
        let made = platform.run(&["clone", "make", "--at", &at, "--json"]).json();
        assert_eq!((&made["shared"], listed(platform).1), (&Value::Bool(false), Value::Null));
        is_then(platform, &made);
    }
    let clones = platform.data().join("clones");
    assert_eq!(names(&clones), listed(platform).0, "nothing but the copies");
    assert!(!clones.join("base.lock").exists());
    platform.down();
    platform.run(&["nuke", "--yes"]).ok();
}

/// Files with their inodes, lengths and times.
fn contents(folder: &Path) -> Vec<(PathBuf, u64, u64, i64, i64)> {
    let of = |path: PathBuf| {
        let meta = fs::metadata(&path).unwrap();
        (path, meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec())
    };
    walk(folder).into_iter().map(of).collect()
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(walk(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

#[test]
fn a_copy_that_is_killed_leaves_nothing_that_counts() {
    let platform = Platform::init();
    if let Err(why) = platform.mount_xfs(MEGABYTES) {
        println!("not run: {why}");
        return;
    }
    with_backups(&platform);
    platform.up(&["--sample"]);
    let at = filled(&platform);
    let words = ["clone", "make", "--at", &at];
    let clones = platform.data().join("clones");
    let has = |name: &str| clones.join(name).exists();
    let unfinished = || {
        let found = if clones.exists() { names(&clones) } else { Vec::new() };
        found.into_iter().find(|name| name.parse::<u16>().is_ok() && !clones.join(name).join("clone.json").exists())
    };
    let writes = || unfinished().is_some_and(|port| clones.join(port).join("data/PG_VERSION").exists());
    let starts = || unfinished().is_some_and(|port| clones.join(port).join("data/postmaster.pid").exists());
    type There<'a> = &'a dyn Fn() -> bool;
    let moments: [(&str, bool, There<'_>); 5] = [
        ("files that are restored", false, &writes),
        ("a base that is being made", false, &|| has("base.new")),
        ("a base that is there", false, &|| has("base")),
        ("files that are shared", true, &writes),
        ("a server that recovers", true, &starts),
    ];
    for (what, with_base, there) in moments {
        let in_time = (0..5).any(|_| {
            if with_base {
                platform.run(&words).ok();
            } else if has("base") {
                platform.run(&["clone", "remove", "base"]).ok();
            }
            killed(start(&platform, &words), what, there)
        });
        assert!(in_time, "{what}: it was too quick each time");
        let left = unfinished();
        // what is there of a base is whole, or is none
        let is_whole = !listed(&platform).1.is_null();
        let made = platform.run(&["clone", "make", "--at", &at, "--json"]).json();
        assert_eq!(made["shared"], is_whole, "{what}");
        is_then(&platform, &made);
        assert!(left.is_none_or(|port| !has(&port) || *made["port"].to_string() == port), "{what}: leftovers");
        assert!(!has("base.new") && unfinished().is_none(), "{what}: {:?}", names(&clones));
        for port in listed(&platform).0 {
            platform.run(&["clone", "remove", &port]).ok();
        }
        assert_eq!(names(&clones), ["base"], "{what}");
    }
    platform.down();
    platform.run(&["nuke", "--yes"]).ok();
}

/// Two at once, from no base, from one, and from one of another backup.
#[test]
fn copies_that_are_made_at_once_do_not_disturb_each_other() {
    let platform = Platform::init();
    if let Err(why) = platform.mount_xfs(MEGABYTES) {
        println!("not run: {why}");
        return;
    }
    with_backups(&platform);
    platform.up(&["--sample"]);
    let at = filled(&platform);
    // one of both is of a newer backup
    platform.run(&["backup", "create"]).ok();
    for round in 0..4 {
        let one = &|at: Option<&str>| {
            let mut words = vec!["clone", "make", "--json"];
            words.extend(at.iter().flat_map(|at| ["--at", at]));
            platform.run(&words).json()
        };
        let other = (round % 2 == 0).then_some(at.as_str());
        let made = std::thread::scope(|scope| {
            let both = [Some(at.as_str()), other].map(|at| scope.spawn(move || one(at)));
            both.map(|made| made.join().unwrap())
        });
        is_then(&platform, &made[0]);
        match round % 2 {
            0 => is_then(&platform, &made[1]),
            _ => assert_eq!(platform.sql(&made[1]["port"].to_string(), COUNTS), platform.sql("primary", COUNTS)),
        }
        let clones = platform.data().join("clones");
        assert!(!clones.join("base.new").exists());
        for port in listed(&platform).0 {
            platform.run(&["clone", "remove", &port]).ok();
        }
        assert_eq!(names(&clones), ["base"], "round {round}");
    }
    platform.down();
    platform.run(&["nuke", "--yes"]).ok();
}

#[test]
fn a_proof_by_schedule_leaves_a_base_which_goes_with_its_backup() {
    let platform = Platform::init();
    let mounted = platform.mount_xfs(MEGABYTES);
    let schedule = "full_every_hours = 24\nincremental_every_hours = 0\nkeep_full = 1\nwindow_days = 0";
    configure(&platform, &format!("repository = \"backups\"\nclone_base = true\n{schedule}"));
    platform.up(&["--sample"]);
    wait_until("a proof", || !platform.status()["backup"]["proven"].is_null());
    let (_, base) = listed(&platform);
    if let Err(why) = mounted {
        println!("on a file system that cannot share blocks: {why}");
        assert_eq!(base, Value::Null);
        assert_eq!(names(&platform.data().join("clones")), [] as [&str; 0]);
        platform.down();
        return;
    }
    assert_eq!(base["label"], platform.status()["backup"]["proven"][0]);
    let made = platform.run(&["clone", "make", "--json"]).json();
    assert_eq!(made["shared"], true, "{made}");
    let loans = "SELECT count(*), sum(amount) FROM operational.loans";
    assert_eq!(platform.sql(&made["port"].to_string(), loans), platform.sql("primary", loans));

    platform.run(&["backup", "create", "--full"]).ok();
    assert_eq!(listed(&platform).1, base, "its backup is there still");
    platform.run(&["backup", "expire"]).ok();
    assert_eq!(listed(&platform).1, Value::Null);
    assert_eq!(platform.sql(&made["port"].to_string(), loans), platform.sql("primary", loans));
    platform.down();
    platform.run(&["nuke", "--yes"]).ok();
}
