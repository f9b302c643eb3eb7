//! Single databases: out of the cluster, into the repository, and back.

use std::fs;

use crate::{
    backup::{walk, with_backups, with_backups_in},
    harness::{Platform, wait_until},
};

fn label(said: &str) -> String {
    let dump: serde_json::Value = serde_json::from_str(said).unwrap();
    dump["label"].as_str().unwrap().to_owned()
}

#[test]
fn a_database_goes_out_and_comes_back_under_another_name() {
    let platform = Platform::init();
    with_backups_in(&platform, "repository = \"backups\"\nkeep_dumps = 1");
    platform.up(&["--sample"]);
    assert!(platform.run(&["backup", "dumps"]).ok().contains("no logical backups in"));
    let large = "CREATE TABLE operational.\"Odd é\" AS SELECT n, repeat('x', 900) FROM generate_series(1, 50000) n";
    platform.sql("primary", large);
    let custom = label(&platform.run(&["backup", "dump", "--json"]).ok());
    let plain = label(&platform.run(&["backup", "dump", "--format", "plain", "--json"]).ok());
    let parallel = label(&platform.run(&["backup", "dump", "--jobs", "2", "--json"]).ok());
    let part = label(&platform.run(&["backup", "dump", "--table", "operational.payments", "--json"]).ok());
    let listed = platform.run(&["backup", "dumps"]).ok();
    for (label, kind) in [(&custom, "custom"), (&plain, "plain"), (&parallel, "directory"), (&part, "payments")] {
        assert!(listed.lines().any(|line| line.contains(label.as_str()) && line.contains(kind)), "{listed}");
    }
    // several parts: the odd table alone has more than one holds
    let stored = walk(&platform.dir().join("backups"));
    let parts_of = |label: &str| {
        let parts = stored.iter().filter(|path| path.to_string_lossy().contains(label));
        parts.filter(|path| path.to_string_lossy().contains("/dump.")).count()
    };
    assert!(parts_of(&custom) > 1 && parts_of(&plain) > 1, "{stored:?}");
    let said = platform.run(&["backup", "verify"]).ok();
    assert!(said.contains("4 logical ones"), "{said}");

    let counts = "SELECT (SELECT count(*) FROM operational.payments), (SELECT count(*) FROM operational.\"Odd é\"), \
                  (SELECT count(*) FROM pg_constraint), (SELECT count(*) FROM pg_trigger)";
    let there = platform.sql("primary", counts);
    for (n, label) in [&custom, &plain, &parallel].into_iter().enumerate() {
        let name = format!("copy {n}");
        platform.run(&["backup", "load", label, "--into", &name]).ok();
        assert_eq!(platform.sql_in("primary", &name, counts), there, "{label}");
    }
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database";
    let before = platform.sql("primary", databases);
    platform.run(&["backup", "load", &custom, "--into", "copy 0"]).failed(1, "there is a database copy 0 already");
    platform
        .run(&["backup", "load", "20260101T000000Z-none", "--into", "other"])
        .failed(1, "there is no backup 20260101T");
    // its foreign key needs a table that is not in it
    platform.run(&["backup", "load", &part, "--into", "other"]).failed(1, "pg_restore: error");
    assert_eq!(platform.sql("primary", databases), before, "a load that fails leaves no database");

    let to = platform.dir().join("fetched");
    let said = platform.run(&["backup", "fetch", &plain, "--to", &to.display().to_string()]).ok();
    assert!(said.contains("psql --dbname"), "{said}");
    assert!(fs::read_to_string(to.join("globals.sql")).unwrap().contains("CREATE ROLE app_user"));
    assert!(fs::read_to_string(to.join("dump")).unwrap().contains("COPY operational.payments"));
    platform.run(&["backup", "fetch", &plain, "--to", &to.display().to_string()]).failed(1, "it is not empty");

    platform.run(&["backup", "dump", "--format", "tar"]).failed(2, "`tar` is no format");
    platform.run(&["backup", "dump", "--format", "plain", "--jobs", "2"]).failed(2, "--jobs needs --format directory");
    platform.run(&["backup", "dump", "--jobs", "0"]).failed(2, "a number from 1 to 64");
    platform.run(&["backup", "dump", "--database", "nowhere"]).failed(1, "\"nowhere\" does not exist");
    platform.run(&["backup", "dump", "--schema", "nothing"]).failed(1, "no matching schemas were found");
    assert_eq!(platform.run(&["backup", "dumps"]).ok(), listed, "one that fails leaves nothing");
    assert!(!platform.run(&["status"]).stdout.contains("dump-"));
    let scratch = fs::read_dir(platform.dir().join("data")).unwrap().flatten();
    let left = scratch.filter(|entry| entry.file_name().to_string_lossy().starts_with("dump-")).count();
    assert_eq!(left, 0, "folders that were needed meanwhile are gone");

    let damaged = stored.iter().find(|path| path.to_string_lossy().contains(&format!("{custom}/dump.00001"))).unwrap();
    let mut bytes = fs::read(damaged).unwrap();
    bytes[500] ^= 1;
    fs::write(damaged, bytes).unwrap();
    platform.run(&["backup", "load", &custom, "--into", "other"]).failed(1, "checksum is wrong");
    assert_eq!(platform.sql("primary", databases), before);
    let said = platform.run(&["backup", "verify"]);
    assert!(said.code == 1 && said.stdout.contains("dump.00001"), "{}", said.stdout);

    let said = platform.run(&["backup", "expire"]).ok();
    assert!([&custom, &plain].into_iter().all(|label| said.contains(&format!("removed {label}"))), "{said}");
    assert!(![&parallel, &part].into_iter().any(|label| said.contains(label.as_str())), "{said}");
    assert!(platform.run(&["backup", "verify"]).ok().contains("2 logical ones"));
    platform.down();
}

#[test]
fn a_database_of_the_past_is_put_beside_the_live_one() {
    let platform = Platform::init();
    with_backups(&platform);
    platform.up(&["--sample"]);
    platform.run(&["backup", "create"]).ok();
    let database = platform.sql("primary", "SELECT current_database()");
    let count = "SELECT count(*) FROM operational.payments";
    let payments = platform.sql("primary", count);
    let before = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    platform.sql("primary", "TRUNCATE operational.payments CASCADE");
    let beyond = platform.sql("primary", "SELECT pg_current_wal_insert_lsn()");
    wait_until("the log in the repository", || {
        let status = platform.run(&["wal", "status", "--json"]).json();
        let reached = status["timelines"][0]["last"].as_str().unwrap().to_owned();
        platform.sql("primary", &format!("SELECT '{reached}'::pg_lsn >= '{beyond}'::pg_lsn")) == "t"
    });
    platform.run(&["backup", "restore-database", "nowhere", "--at", &before]).failed(1, "\"nowhere\" does not exist");
    platform.run(&["backup", "restore-database", &database, "--into", &database]).failed(1, "already");
    let said = platform.run(&["backup", "restore-database", &database, "--at", &before]).ok();
    let restored = format!("{database}_restored");
    assert!(said.contains(&restored), "{said}");
    assert_eq!(platform.sql_in("primary", &restored, count), payments);
    assert_eq!(platform.sql("primary", count), "0");
    assert!(platform.run(&["clone", "list"]).ok().contains("there are no copies"));
    // the live one has its slots and its publication; the other has none
    assert_eq!(platform.sql_in("primary", &restored, "SELECT count(*) FROM pg_publication"), "0");
    platform.down();
}

/// Every database, once for each period, by itself.
#[test]
fn logical_backups_are_made_when_they_are_due() {
    let platform = Platform::init();
    with_backups_in(&platform, "repository = \"backups\"\ndump_every_hours = 1");
    platform.up(&["--sample"]);
    let dumps = || platform.run(&["backup", "dumps", "--json"]).json();
    let count = || dumps().as_array().unwrap().len();
    // the pack's is made a moment after the servers; what is due is looked at twice a minute
    wait_until("a dump of each database", || count() == 3);
    let mut databases: Vec<String> =
        dumps().as_array().unwrap().iter().map(|of| of["database"].as_str().unwrap().to_owned()).collect();
    databases.sort();
    assert_eq!(databases, ["loans_db", "millrace", "postgres"]);
    assert_eq!(platform.status()["backup"]["failed"], serde_json::Value::Null);
    // after a restart only the one that is not there: databases come in the order of their names
    platform.down();
    let all = dumps();
    let lost = all.as_array().unwrap().iter().find(|of| of["database"] == "postgres").unwrap();
    let system = lost["system_id"].as_u64().unwrap().to_string();
    let place = platform.dir().join("backups").join(system).join("dumps").join(lost["label"].as_str().unwrap());
    fs::remove_dir_all(place).unwrap();
    assert_eq!(count(), 2);
    platform.up(&[]);
    wait_until("what was lost", || count() == 3);
    let log = fs::read_to_string(platform.dir().join("data/logs/millrace.log")).unwrap();
    assert_eq!(log.matches("a logical backup was made").count(), 4, "{log}");
    platform.down();
}
