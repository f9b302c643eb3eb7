//! Backups as an operator makes, checks and restores them.

use std::{fs, process::Stdio};

use millrace_testkit::{Bucket, Sandbox};

use crate::harness::{Load, Platform, alive, command, wait_until};

pub(crate) fn with_backups(platform: &Platform) {
    with_backups_in(platform, "repository = \"backups\"");
}

pub(crate) fn with_backups_in(platform: &Platform, place: &str) {
    configure(platform, &format!("{place}\nfull_every_hours = 0\nincremental_every_hours = 0"));
}

pub(crate) fn configure(platform: &Platform, table: &str) {
    let file = platform.dir().join("millrace.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[backup]\n{table}\n")).unwrap();
}

#[test]
fn one_is_made_and_proven_by_itself_when_it_is_due() {
    let platform = Platform::init();
    configure(&platform, "repository = \"backups\"\nfull_every_hours = 24\nincremental_every_hours = 0");
    platform.up(&[]);
    let status = || platform.status()["backup"].clone();
    wait_until("a backup that is proven, and told", || {
        let status = status();
        !status["proven"].is_null() && !status["last"].is_null()
    });
    let told = status();
    let all = platform.run(&["backup", "list", "--json"]).json();
    assert_eq!(all.as_array().unwrap().len(), 1);
    let label = &all[0]["label"];
    assert_eq!([&told["last"]["label"], &told["proven"][0]], [label, label]);
    assert_eq!((&told["last"]["full"], &told["failed"]), (&true.into(), &serde_json::Value::Null));
    // by hand, so that the platform hears of it when it looks
    platform.run(&["backup", "create"]).ok();
    wait_until("the newer one", || status()["last"]["full"] == false);
    platform.down();
}

#[test]
fn a_proof_asks_for_what_must_not_be() {
    let platform = Platform::init();
    with_backups(&platform);
    platform.up(&["--sample"]);
    let made = platform.run(&["backup", "create"]).ok();
    let counted = made.lines().find(|line| line.contains(" counted for proofs")).unwrap();
    let counted = counted.split(" counted").next().unwrap().replace(" with ", " held the ");
    let proven = platform.run(&["backup", "prove"]).ok();
    assert!(proven.contains("2 rules of the pack hold"), "{proven}");
    // as many tables, with as many rows, as the backup has said
    assert!(proven.contains(&format!("✔ {counted} that were counted")), "{made}{proven}");
    // a rule of what is not there is left out, and said to be
    let of_later = platform.dir().join("pack/checks/of_later.sql");
    fs::write(&of_later, "SELECT * FROM operational.not_yet;\n").unwrap();
    let proven = platform.run(&["backup", "prove"]).ok();
    assert!(proven.contains("2 rules of the pack hold") && proven.contains("left out: of_later"), "{proven}");
    fs::write(&of_later, "SELECT 1 / 0\n").unwrap();
    platform.run(&["backup", "prove"]).failed(1, "the rule of_later cannot be asked");
    fs::remove_file(&of_later).unwrap();
    // past all triggers, as a mistaken repair would
    platform.sql(
        "primary",
        "SET session_replication_role = replica; \
         UPDATE operational.loans SET outstanding_balance = outstanding_balance / 2 \
         WHERE loan_id = (SELECT min(loan_id) FROM operational.loans WHERE status = 'active')",
    );
    platform.run(&["backup", "create"]).ok();
    let said = platform.run(&["backup", "prove"]).failed(1, "the rule balances_add_up is broken, by {");
    assert!(said.contains("outstanding_balance"), "{said}");
    platform.down();
}

#[test]
fn a_new_key_writes_and_the_old_one_still_reads() {
    let platform = Platform::init();
    with_backups(&platform);
    platform.up(&[]);
    platform.run(&["backup", "create"]).ok();
    let said = platform.run(&["backup", "new-key"]).ok();
    assert!(said.contains("a new key comes first") && said.contains("1 before it"), "{said}");
    platform.down();
    platform.up(&[]);
    let made = platform.run(&["backup", "create", "--full", "--json"]).json();
    platform.run(&["backup", "verify"]).ok();
    platform.run(&["backup", "prove"]).ok();

    let file = platform.dir().join("secrets.toml");
    let both = fs::read_to_string(&file).unwrap();
    let words = both.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let keys: Vec<&str> = words.filter(|word| word.starts_with("AGE-SECRET-KEY-")).collect();
    assert_eq!(keys.len(), 2);
    let first = platform.run(&["backup", "list", "--json"]).json()[0]["label"].as_str().unwrap().to_owned();
    let second = made["label"].as_str().unwrap();
    for (lost, reads, does_not) in [(keys[1], second, first.as_str()), (keys[0], first.as_str(), second)] {
        fs::write(&file, both.replace(lost, "")).unwrap();
        platform.run(&["backup", "info", does_not]).failed(1, "none of the given keys decrypts");
        platform.run(&["backup", "info", reads]).ok();
    }
    fs::write(&file, both).unwrap();
    platform.down();
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
    assert!(proven.contains("✔ restored in") && !platform.dir().join("data/proof/copy").exists(), "{proven}");
    // one that is killed leaves a server behind, and the next one removes it
    let dir = platform.dir();
    let mut killed = command(&["--dir", dir.to_str().unwrap(), "backup", "prove"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let copy = dir.join("data/proof/copy");
    let pid = || fs::read_to_string(copy.join("data/postmaster.pid")).ok()?.lines().next()?.parse().ok();
    wait_until("the server of a proof", || pid().is_some());
    let left = pid().unwrap();
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success(), "it was too quick to be killed");
    assert!(alive(left));
    platform.run(&["backup", "prove"]).ok();
    assert!(!alive(left) && !copy.exists());
    let proven: Vec<bool> = platform
        .run(&["backup", "list", "--json"])
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["proven"].is_i64())
        .collect();
    assert_eq!(proven, [false, true], "it is remembered of which backup");
    let plan = platform.run(&["backup", "restore"]).ok();
    assert!(plan.contains("window") && plan.contains("nothing was restored"), "{plan}");
    platform.run(&["backup", "restore", "--lsn", "F/0"]).failed(1, "lies outside of what can be restored");
    platform.run(&["backup", "restore", "--time", "yesterday"]).failed(2, "is no moment");
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

/// From the newest backup and its log, under load; from the primary when there is no backup.
#[test]
fn a_replica_is_made_from_a_backup() {
    let platform = Platform::init();
    with_backups_in(&platform, "repository = \"backups\"\nreplicas_from_backup = true");
    platform.up(&["--sample"]);
    let load = Load::on(&platform, "50");
    platform.run(&["backup", "create"]).ok();
    // the log of two timelines
    platform.run(&["cluster", "switchover", "--to", "b"]).ok();
    let log = || fs::read_to_string(platform.dir().join("data/logs/millrace.log")).unwrap();
    let (sown, copied) = ("made from a backup", "its primary is copied");
    let before = log().matches(copied).count();
    let anew = |what: &str| {
        let many = log().matches(what).count();
        platform.run(&["cluster", "reinit", "c", "--yes"]).ok();
        wait_until(what, || log().matches(what).count() > many);
        let slot = "SELECT active FROM pg_replication_slots WHERE slot_name = 'node_c'";
        wait_until("c to stream", || platform.sql("primary", slot) == "t");
        let at = platform.sql("primary", "SELECT pg_current_wal_flush_lsn()");
        let passed = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'");
        wait_until("c to have all", || platform.try_sql("c", &passed).stdout.trim() == "t");
    };
    anew(sown);
    assert_eq!(log().matches(copied).count(), before, "{}", log());
    drop(load);
    let all = "SELECT count(*), sum(amount) FROM operational.payments";
    // it restarts once more when it gets the slots of its primary
    let same = || platform.try_sql("c", all).stdout.trim() == platform.sql("primary", all);
    wait_until("the same on both", same);
    let control = fs::read_to_string(platform.dir().join("data/nodes/c/data/postgresql.auto.conf")).unwrap();
    assert!(!control.contains("recovery_target"), "{control}");

    let system = fs::read_dir(platform.dir().join("backups")).unwrap().next().unwrap().unwrap().path();
    fs::remove_dir_all(system.join("backups")).unwrap();
    anew(copied);
    wait_until("the same on both", same);
    platform.down();
}

#[test]
fn a_bucket_keeps_them_as_well() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = Sandbox::new();
    let bucket = runtime.block_on(Bucket::serve(folder.path()));
    let platform = Platform::init();
    with_backups_in(&platform, &format!("repository = \"s3://box/loans\"\nendpoint = \"{}\"", bucket.endpoint()));
    platform.run(&["backup", "list"]).failed(1, "has no s3_access_key and s3_secret_key");
    let secrets = platform.dir().join("secrets.toml");
    let (access, secret, rest) = (Bucket::ACCESS_KEY, Bucket::SECRET_KEY, fs::read_to_string(&secrets).unwrap());
    fs::write(&secrets, format!("s3_access_key = \"{access}\"\ns3_secret_key = \"{secret}\"\n{rest}")).unwrap();
    platform.up(&["--sample"]);
    platform.run(&["backup", "create"]).ok();
    let loans = platform.sql("primary", "SELECT count(*) FROM operational.loans");
    assert!(platform.run(&["backup", "prove"]).ok().contains("✔ restored in"));
    assert!(platform.run(&["backup", "verify"]).ok().contains("all as they were written"));
    let port = platform.run(&["clone", "make", "--json"]).json()["port"].to_string();
    assert_eq!(platform.sql(&port, "SELECT count(*) FROM operational.loans"), loans);
    platform.run(&["clone", "remove", &port]).ok();
    // nothing of it lies on this host
    assert!(!platform.dir().join("backups").exists());
    assert!(bucket.folder().join("loans").is_dir());
    platform.down();
}

/// The disk of one of them goes away for a while; then the other's is lost.
#[test]
fn two_places_have_the_same_and_each_is_enough() {
    let platform = Platform::init();
    with_backups(&platform);
    let file = platform.dir().join("millrace.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[[backup.copies]]\nrepository = \"backups\"\n")).unwrap();
    platform.run(&["check"]).failed(1, "`repository` is one that is named already");
    fs::write(&file, format!("{text}\n[[backup.copies]]\nrepository = \"elsewhere\"\n")).unwrap();
    platform.up(&["--sample"]);
    let (here, elsewhere) = (platform.dir().join("backups"), platform.dir().join("elsewhere"));
    platform.run(&["backup", "create"]).ok();
    let status = || platform.run(&["status", "--json"]).json();
    let away = || status()["backup"]["away"].as_array().unwrap().len();
    assert_eq!(away(), 0);

    let kept = platform.dir().join("kept");
    fs::rename(&elsewhere, &kept).unwrap();
    fs::write(&elsewhere, "no folder").unwrap();
    platform.sql("primary", "INSERT INTO operational.customers (full_name) VALUES ('Of A Bad Hour')");
    wait_until("a word on the one that is away", || away() == 1);
    let said = platform.run(&["status"]).stdout;
    assert!(said.contains("gets nothing at present") && said.contains("elsewhere"), "{said}");
    let made = platform.run(&["backup", "create"]);
    assert!(made.code == 0 && made.stderr.contains("does not answer"), "{made:?}");
    let said = platform.run(&["backup", "verify"]);
    assert!(said.code == 1 && said.stdout.contains("elsewhere:\n✘ "), "{}", said.stdout);

    fs::remove_file(&elsewhere).unwrap();
    fs::rename(&kept, &elsewhere).unwrap();
    wait_until("both again", || away() == 0);
    let said = platform.run(&["backup", "verify"]).ok();
    assert_eq!(said.matches("2 backups").count(), 2, "{said}");
    let reports = platform.run(&["backup", "verify", "--quick", "--json"]).json();
    assert_eq!(reports.as_array().unwrap().len(), 2, "{reports}");

    platform.down();
    fs::remove_dir_all(&here).unwrap();
    platform.run(&["backup", "list", "--repository", "nowhere"]).failed(2, "names no repository nowhere");
    let list = |of: &str| platform.run(&["backup", "list", "--json", "--repository", of]).json();
    assert_eq!(list("elsewhere").as_array().unwrap().len(), 2);
    assert_eq!(list("backups").as_array().unwrap().len(), 0);
    let to = platform.dir().join("restored");
    platform.run(&["backup", "restore", "--to", &to.display().to_string()]).ok();
    assert!(to.join("global/pg_control").exists());
}

pub(crate) fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
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

/// A mistake, looked at in a copy of the time before it, and undone.
#[test]
fn a_dropped_table_is_found_in_a_copy_and_brought_back() {
    let platform = Platform::init();
    with_backups(&platform);
    platform.up(&["--sample"]);
    // at the end nothing may be committed for a moment
    platform.sql("primary", "ALTER SYSTEM SET autovacuum = off");
    platform.sql("primary", "SELECT pg_reload_conf()");
    platform.run(&["clone", "make"]).failed(1, "no backup");
    platform.run(&["backup", "create"]).ok();
    let made =
        "CREATE SCHEMA lab; CREATE TABLE lab.days (day date, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
        CREATE TABLE lab.days_1 PARTITION OF lab.days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
        CREATE TABLE lab.days_2 PARTITION OF lab.days FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
        CREATE TABLE lab.notes (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, day date, n int, words text,
            FOREIGN KEY (day, n) REFERENCES lab.days);
        CREATE TYPE lab.mood AS ENUM ('good'); CREATE TABLE lab.moods AS SELECT 'good'::lab.mood AS mood;
        INSERT INTO lab.days SELECT '2026-01-31'::date + n % 2, n FROM generate_series(1, 1000) AS n;
        INSERT INTO lab.notes (day, n, words) SELECT day, n, 'of ' || n FROM lab.days";
    platform.sql("primary", made);
    let before = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    let payments = platform.sql("primary", "SELECT count(*) FROM operational.payments");
    platform.sql("primary", "DROP SCHEMA lab CASCADE; TRUNCATE operational.payments CASCADE");
    let reached = || {
        let status = platform.run(&["wal", "status", "--json"]).json();
        status["timelines"][0]["last"].as_str().unwrap().to_owned()
    };
    let beyond = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    wait_until("the log in the repository", || {
        platform.sql("primary", &format!("SELECT '{}'::pg_lsn >= '{beyond}'::pg_lsn", reached())) == "t"
    });

    let copy = platform.run(&["clone", "make", "--at", &before, "--json"]).ok();
    let copy: serde_json::Value = serde_json::from_str(&copy).unwrap();
    let port = copy["port"].to_string();
    assert_eq!(platform.sql(&port, "SELECT count(*) FROM operational.payments"), payments);
    assert_eq!(platform.sql(&port, "SELECT count(*) FROM lab.notes"), "1000");
    platform.sql(&port, "DELETE FROM lab.notes");
    let listed = platform.run(&["clone", "list"]).ok();
    assert!(listed.contains(&port) && listed.contains("running"), "{listed}");
    platform.run(&["clone", "make", "--port", &port]).failed(1, "there is a copy on port");
    platform.run(&["clone", "make", "--at", "tomorrow"]).failed(2, "is no moment");
    platform.run(&["clone", "make", "--at", "10 years ago"]).failed(1, "lies outside of what can be restored");

    for (table, into) in [("lab.days", "found_days"), ("lab.notes", "found_notes")] {
        let table = ["backup", "restore-table", table, "--at", &before, "--into", into];
        let said = platform.run(&table).ok();
        assert!(said.contains("has the 1000 rows"), "{said}");
        platform.run(&table).failed(1, "is there already");
    }
    assert_eq!(platform.sql("primary", "SELECT count(*) FROM found_days.days_2"), "500");
    platform.sql("primary", "INSERT INTO found_notes.notes (words) VALUES ('its sequence goes on')");
    // a sequence that was recovered from the log has skipped up to 32 values
    assert_eq!(platform.sql("primary", "SELECT max(id) BETWEEN 1001 AND 1033 FROM found_notes.notes"), "t");
    platform.run(&["backup", "restore-table", "lab.none", "--at", &before]).failed(1, "was not there then");

    // what it needs is gone: nothing of it arrives
    let moods = ["backup", "restore-table", "lab.moods", "--at", &before, "--into", "found_moods"];
    platform.run(&moods).failed(1, "psql: ");
    assert_eq!(platform.sql("primary", "SELECT to_regnamespace('found_moods') IS NULL"), "t");

    let copies = platform.run(&["clone", "list", "--json"]).json();
    assert_eq!(copies["copies"].as_array().unwrap().len(), 1, "those for tables are gone: {copies}");
    platform.run(&["clone", "remove", &port]).ok();
    platform.run(&["clone", "remove", &port]).failed(1, "there is no copy on port");
    assert_eq!(platform.run(&["clone", "list"]).ok().trim(), "there are no copies");
    // a moment after which nothing was committed, though there is log beyond it
    platform.sql("primary", "CREATE TABLE found_notes.last AS SELECT 7 AS n");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'";
    wait_until("the last autovacuum to end", || platform.sql("primary", workers) == "0");
    let now = platform.sql("primary", "SELECT to_json(clock_timestamp() AT TIME ZONE 'UTC') #>> '{}' || 'Z'");
    let beyond = platform.sql("primary", "SELECT pg_switch_wal()");
    wait_until("the log in the repository", || {
        platform.sql("primary", &format!("SELECT '{}'::pg_lsn >= '{beyond}'::pg_lsn", reached())) == "t"
    });
    let last = platform.run(&["clone", "make", "--at", &now, "--json"]).json();
    assert_eq!(platform.sql(&last["port"].to_string(), "SELECT n FROM found_notes.last"), "7");
    assert!(last["ended_at"].is_string(), "{last}");
    platform.down();
    platform.run(&["nuke", "--yes"]).ok();
    let gone = std::net::TcpStream::connect(("127.0.0.1", u16::try_from(last["port"].as_u64().unwrap()).unwrap()));
    assert!(gone.is_err(), "nuke ends copies too");
}
