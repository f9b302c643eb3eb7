//! The warehouse's disk is full.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::harness::{Platform, command, wait_until};

/// `millrace up` with a folder on a file system of its own, which goes away with it. Only root may
/// mount; anyone else is root in a user namespace for as long as that takes.
pub(crate) fn up_on_a_small_disk(platform: &Platform, folder: &Path, megabytes: u32, words: &[&str]) -> Child {
    fs::create_dir_all(folder).unwrap();
    let me = fs::metadata("/proc/self").unwrap();
    let mount = format!("mount -t tmpfs -o size={megabytes}m,mode=700 none \"$0\"");
    let mut unshare = Command::new("unshare");
    let script = if me.uid() == 0 {
        format!("{mount} && exec \"$@\"")
    } else {
        unshare.args(["--user", "--map-root-user"]);
        // back to who we are: servers do not run as root
        format!("{mount} && exec unshare --user --map-user={} --map-group={} \"$@\"", me.uid(), me.gid())
    };
    let dir = platform.dir();
    let mut up = command(&["--dir", dir.to_str().unwrap(), "up"]);
    up.args(words);
    unshare.args(["--mount", "sh", "-c", &script]).arg(folder).arg(up.get_program()).args(up.get_args());
    let said = fs::File::create(platform.dir().join("up.out")).unwrap();
    unshare.env("NO_COLOR", "1").current_dir(&dir).stdin(Stdio::null());
    unshare.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()
}

/// What the small disk looks like from within the platform.
pub(crate) fn within(platform: &Platform, folder: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", platform.pid(), folder.display()))
}

#[test]
fn a_full_warehouse_disk_stops_capture_alone_and_is_caught_up_with() {
    let platform = Platform::init();
    let folder = platform.data().join("warehouse");
    let mut up = up_on_a_small_disk(&platform, &folder, 512, &["--sample"]);
    wait_until("the platform", || {
        assert!(up.try_wait().unwrap().is_none(), "{}", fs::read_to_string(platform.dir().join("up.out")).unwrap());
        platform.run(&["status", "--json"]).code == 0
            && platform.try_sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments").code == 0
    });
    let payments = |target: &str| -> u64 {
        let table = if target == "warehouse" { "warehouse.fact_payments" } else { "operational.payments" };
        platform.sql(target, &format!("SELECT count(*) FROM {table}")).parse().unwrap()
    };
    wait_until("the copy", || payments("warehouse") == payments("primary"));

    let ballast = within(&platform, &folder).join("ballast");
    let fill = || {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    };
    let stalled = || {
        let status = platform.status();
        status["capture"]["state"] == "retrying" && status.to_string().contains("disk is full")
    };
    // more than what is set aside by then in files that are there already
    wait_until("capture to say that the disk is full", || {
        fill();
        platform.sql(
            "primary",
            "UPDATE operational.payments SET payment_date = payment_date + interval '1 second' WHERE payment_id % 3 = 0",
        );
        stalled()
    });
    let text = platform.run(&["status"]).ok();
    assert!(text.contains("make room on the warehouse's disk"), "{text}");
    assert!(text.contains("data/warehouse: has "), "the disk is not shown: {text}");
    platform.run(&["health"]).failed(1, "");

    // the primary goes on, and the slot keeps what the warehouse cannot take
    let customers = "UPDATE operational.customers SET city = 'Full City' WHERE customer_id % 100 = 0";
    platform.sql("primary", customers);
    platform.sql("primary", "DELETE FROM operational.payments WHERE payment_id % 1000 = 0");
    let slot = "SELECT wal_status IN ('reserved', 'extended') FROM pg_replication_slots WHERE slot_name = 'millrace'";
    assert_eq!(platform.sql("primary", slot), "t");
    assert!(stalled() || platform.status()["capture"]["state"] != "stopped");

    fs::remove_file(&ballast).unwrap();
    wait_until("the platform to catch up", || {
        platform.sql("warehouse", "SELECT count(*) FROM staging.customers WHERE city = 'Full City'")
            == platform.sql("primary", "SELECT count(*) FROM operational.customers WHERE city = 'Full City'")
    });
    wait_until("health", || {
        platform.run(&["health"]).code == 0 || !platform.run(&["status"]).ok().contains("capture:")
    });
    platform.prove();
    assert_eq!(payments("warehouse"), payments("primary"));
    let twice = "SELECT count(*) - count(DISTINCT payment_id) FROM staging.payments";
    assert_eq!(platform.sql("warehouse", twice), "0");
    platform.down();
    up.wait().unwrap();
}
