//! A cluster brought back from its backups, in its own place.

use std::{fs, path::Path, process::Stdio};

use crate::{
    backup::with_backups,
    failover::safe,
    harness::{Load, Platform, Said, command, kill, wait_until},
    hosts::{Hosts, NODES},
};

const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

fn count(platform: &Platform, table: &str) -> u64 {
    platform.sql("primary", &format!("SELECT count(*) FROM operational.{table}")).parse().unwrap()
}

/// Waits until all that is committed now is in the repository.
fn archived(platform: &Platform) {
    archived_by(|sql| platform.sql("primary", sql), || platform.run(&["wal", "status", "--json"]));
}

fn archived_by(sql: impl Fn(&str) -> String, wal_status: impl Fn() -> Said) {
    let lsn = sql("SELECT pg_current_wal_insert_lsn()");
    wait_until("the log in the repository", || {
        let status = wal_status().json();
        let Some(reached) = status["timelines"].as_array().unwrap().last() else { return false };
        let reached = reached["last"].as_str().unwrap();
        sql(&format!("SELECT '{reached}'::pg_lsn >= '{lsn}'::pg_lsn")) == "t"
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

/// Three hosts, the platform on the last; the restore is on the second, the primary of before was on the first.
#[test]
fn a_cluster_on_many_hosts_is_brought_back_on_one_of_them() {
    let mut hosts = Hosts::start();
    let (first, second, last) = (hosts.primary(), 1, NODES.len() - 1);
    assert_eq!(first, 0);
    let repository = hosts.folder.path().join("backups");
    for node in 0..NODES.len() {
        let file = hosts.dir(node).join("millrace.toml");
        let text = fs::read_to_string(&file).unwrap();
        let place = format!("repository = \"{}\"", repository.display());
        let table = format!("[backup]\n{place}\nfull_every_hours = 0\nincremental_every_hours = 0");
        fs::write(&file, format!("{text}\n{table}\n")).unwrap();
    }
    hosts.said(last, &["up", "-d", "--sample"]).ok();
    let archived = |hosts: &Hosts| {
        let sql = |sql: &str| hosts.psql(last, "primary", sql).ok().trim().to_owned();
        archived_by(sql, || hosts.said(last, &["wal", "status", "--json"]));
    };
    let sql = |hosts: &Hosts, sql: &str| hosts.psql(last, "primary", sql).ok().trim().to_owned();
    hosts.said(last, &["backup", "create"]).ok();
    let payments = "SELECT count(*) FROM operational.payments";
    let after = "SELECT count(*) FROM operational.customers WHERE full_name = 'After It'";
    let paid = sql(&hosts, payments);
    assert_ne!(paid, "0");
    let moment = sql(&hosts, NOW);
    sql(&hosts, "TRUNCATE operational.payments");
    hosts.sql(last, "INSERT INTO operational.customers (full_name) VALUES ('After It')").ok();
    archived(&hosts);
    let wanted = ["backup", "restore", "--in-place", "--time", &moment, "--yes"];
    hosts.said(second, &wanted).failed(1, "the platform runs");
    [last, second].into_iter().for_each(|node| hosts.down(node));
    hosts.said(second, &wanted).failed(1, "agents run: a");
    hosts.said(second, &[&wanted[..], &["--node", "z"]].concat()).failed(2, "there is no such node: a, b, c");
    // one that is killed leaves its server, which takes writes from whoever reaches it
    let mut agent = hosts.agents[first].take().unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    hosts.said(second, &wanted).failed(1, "the server of a still runs on 127.0.1.1");
    assert!(hosts.said(first, &["down"]).ok().contains("stopped 1 servers that it had left"));

    // nothing has changed as long as the record has not, and it does not once an agent is there again
    let dir = hosts.dir(second);
    die(&dir, "in_place.replayed", &wanted);
    let pid_file = dir.join("data/nodes/b/restoring/data/postmaster.pid");
    let meanwhile = |hosts: &mut Hosts, nodes: &[usize], until: &dyn Fn(&Hosts) -> bool| {
        let restoring = command(&[&["--dir", dir.to_str().unwrap()], &wanted[..]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("the restored server", || pid_file.exists());
        kill(restoring.id(), "STOP");
        nodes.iter().for_each(|node| hosts.begin(*node));
        wait_until("the agents", || until(hosts));
        kill(restoring.id(), "CONT");
        let refused = restoring.wait_with_output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    let said = meanwhile(&mut hosts, &[first, last], &|hosts| hosts.sql(last, "SELECT 1").code == 0);
    assert!(said.contains("the server of a still runs"), "{said}");
    assert_eq!(sql(&hosts, after), "1");
    [first, last].into_iter().for_each(|node| hosts.down(node));
    // an agent without a server
    let away = |from: &str, to: &str| {
        let folder = dir.parent().unwrap().join("c/data/nodes/c");
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    };
    away("data", "away");
    let said = meanwhile(&mut hosts, &[last], &|hosts| hosts.view(last).is_some_and(|view| view["primary"] == "a"));
    assert!(said.contains("agents run: c"), "{said}");
    hosts.down(last);
    away("away", "data");

    // from there on its old data is none of this cluster's any more, and no other node's is
    die(&dir, "in_place.after_term", &wanted);
    hosts.begin(second);
    hosts.begin(last);
    wait_until("what is wrong to be said", || {
        let said = hosts.said(second, &["cluster", "status"]).stdout;
        said.contains("the restore has not ended") && said.contains("backup restore --in-place --node b")
    });
    hosts.said(last, &["cluster", "failover", "--to", NODES[last], "--yes"]).failed(1, "no replica that answers");
    [second, last].into_iter().for_each(|node| hosts.down(node));
    // what was aside is put back by somebody: it is of before all the same
    die(&dir, "in_place.before_rename", &wanted);
    let folder = dir.join("data/nodes/b");
    let aside = fs::read_dir(&folder).unwrap().flatten().find(|entry| entry.path().join("PG_VERSION").exists());
    fs::rename(aside.unwrap().path(), folder.join("data")).unwrap();
    hosts.begin(second);
    wait_until("what is wrong to be said", || {
        hosts.said(second, &["cluster", "status"]).stdout.contains("the restore has not ended")
    });
    hosts.down(second);
    let said = hosts.said(second, &wanted).ok();
    assert!(said.contains("b is restored") && said.contains("next: millrace agent b on this host"), "{said}");
    let aside = |hosts: &Hosts, node: usize| {
        let folder = hosts.dir(node).join("data/nodes").join(NODES[node]);
        let kept = fs::read_dir(folder).unwrap().flatten();
        kept.filter(|entry| entry.path().join("PG_VERSION").exists() && !entry.path().ends_with("data")).count()
    };
    assert_eq!([first, second, last].map(|node| aside(&hosts, node)), [0, 1, 0]);

    // whoever comes first waits for the one that has the data
    hosts.begin(last);
    hosts.begin(first);
    hosts.begin(second);
    hosts.ready();
    assert_eq!(hosts.primary(), second);
    assert_eq!([first, second, last].map(|node| aside(&hosts, node)), [1, 1, 1]);
    hosts.said(last, &["up", "-d", "--recopy"]).ok();
    for node in NODES {
        let counted = |sql: &str| hosts.psql(last, node, sql).ok().trim().to_owned();
        assert_eq!((counted(payments), counted(after)), (paid.clone(), "0".to_owned()), "{node}");
    }
    hosts.said(last, &["prove"]).ok();
    let history = hosts.said(first, &["cluster", "history"]).ok();
    assert!(history.contains("has been restored from backup"), "{history}");
    hosts.sql(first, "INSERT INTO operational.customers (full_name) VALUES ('New Life')").ok();
    archived(&hosts);
    let status = hosts.said(last, &["wal", "status", "--json"]).json();
    let timelines = status["timelines"].as_array().unwrap();
    assert!(timelines.len() == 2 && timelines.iter().all(|of| of["gaps"].as_array().unwrap().is_empty()), "{status}");
    hosts.said(last, &["backup", "create"]).ok();

    // it fails over as ever
    hosts.kill(second);
    wait_until("another primary", || {
        hosts.sql(first, "INSERT INTO operational.customers (full_name) VALUES ('Newer Life')").code == 0
    });
    hosts.begin(second);
    hosts.ready();
    assert_eq!(aside(&hosts, second), 1, "it has been rewound");
    hosts.down(last);
}

/// The command dies at a failpoint.
#[track_caller]
fn die(dir: &Path, failpoint: &str, arguments: &[&str]) {
    let armed = format!("{failpoint}:abort");
    let died =
        command(&[&["--dir", dir.to_str().unwrap(), "--failpoint", &armed], arguments].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&died.stderr);
    assert_eq!(died.status.code(), None, "{failpoint} was not reached: {said}");
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
