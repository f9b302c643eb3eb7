//! Backups as an operator makes, checks and restores them.

use std::fs;

use crate::harness::{Load, Platform, wait_until};

fn with_backups(platform: &Platform) {
    let file = platform.dir().join("millrace.toml");
    let text = fs::read_to_string(&file).unwrap();
    let table = "\n[backup]\nrepository = \"backups\"\nfull_every_hours = 0\nincremental_every_hours = 0\n";
    fs::write(&file, format!("{text}{table}")).unwrap();
}

#[test]
fn what_was_committed_comes_back_and_damage_is_named() {
    let platform = Platform::init();
    platform.run(&["backup", "list"]).failed(1, "millrace.toml has no [backup]");
    with_backups(&platform);
    platform.up(&["--sample"]);
    let load = Load::on(&platform, "50");
    let made = platform.run(&["backup", "create"]).ok();
    assert!(made.contains("a full backup, because there is no backup to build on"), "{made}");
    // a primary comes and goes: the log goes on in the repository
    platform.run(&["cluster", "switchover"]).ok();
    let made = platform.run(&["backup", "create", "--json"]).ok();
    let manifest: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!(manifest["kind"], "incremental", "{made}");
    let whole = platform.run(&["backup", "list", "--json"]).json();
    let sizes: Vec<u64> = whole.as_array().unwrap().iter().map(|of| of["stored_bytes"].as_u64().unwrap()).collect();
    assert!(sizes.len() == 2 && sizes[1] < sizes[0], "{sizes:?}");
    drop(load);

    let mark =
        "INSERT INTO operational.customers (full_name) VALUES ('The Last One') RETURNING pg_current_wal_insert_lsn()";
    let lsn = platform.sql("primary", mark);
    wait_until("the log in the repository", || {
        let status = platform.run(&["wal", "status", "--json"]).json();
        let reached = status["timelines"].as_array().unwrap().last().unwrap()["last"].as_str().unwrap().to_owned();
        platform.sql("primary", &format!("SELECT '{reached}'::pg_lsn > '{}'::pg_lsn", lsn.lines().next().unwrap()))
            == "t"
    });
    let proven = platform.run(&["backup", "prove"]).ok();
    assert!(proven.contains("✔ restored in") && !platform.dir().join("data/proof").exists(), "{proven}");
    let plan = platform.run(&["backup", "restore"]).ok();
    assert!(plan.contains("window") && plan.contains("nothing was restored"), "{plan}");
    platform.run(&["backup", "restore", "--lsn", "F/0"]).failed(1, "lies outside of what can be restored");
    platform.run(&["backup", "restore", "--time", "yesterday"]).failed(2, "is no time");
    let full = platform.dir().join("pack");
    platform.run(&["backup", "restore", "--to", &full.display().to_string()]).failed(1, "it is not empty");
    let to = platform.dir().join("restored");
    platform.run(&["backup", "restore", "--to", &to.display().to_string()]).ok();
    assert!(to.join("global/pg_control").exists());

    let said = platform.run(&["backup", "verify"]).ok();
    assert!(said.contains("all as they were written"), "{said}");
    let said = platform.run(&["backup", "expire", "--dry-run"]).ok();
    assert!(said.contains("keeps"), "{said}");
    let status = platform.run(&["status"]).ok();
    assert!(status.contains("backups") && status.contains("behind"), "{status}");

    // one bit
    let folder = platform.dir().join("backups");
    let pack = walk(&folder).into_iter().find(|path| path.to_string_lossy().contains("pack-00000")).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let said = platform.run(&["backup", "verify"]);
    assert_eq!(said.code, 1, "{}", said.stdout);
    assert!(said.stdout.contains("pack-00000") && said.stdout.contains("checksum is wrong"), "{}", said.stdout);
    platform.down();
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
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
