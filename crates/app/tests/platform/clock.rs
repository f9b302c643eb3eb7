//! The machine's clock is set back under a platform that runs.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use millrace_pg::Binaries;

use crate::harness::{Platform, run, wait_until};

/// `libfaketime` puts a file's offset between a process and the wall clock; the monotonic one stays true.
fn library() -> PathBuf {
    let found = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"]
        .map(|folder| PathBuf::from(folder).join("faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("libfaketime is missing: `make setup` installs it"))
}

struct Clock {
    // not beside the platform: programs may not run from where that is
    _folder: tempfile::TempDir,
    offset: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Clock {
    /// For the platform's own processes, and through wrappers of PostgreSQL's programs for the servers, which get no
    /// environment of ours.
    fn under(platform: &Platform) -> Self {
        let own = tempfile::tempdir().unwrap();
        fs::set_permissions(own.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (offset, folder) = (own.path().join("clock"), own.path().join("bin"));
        let variables = vec![
            ("LD_PRELOAD", library().display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ];
        let clock = Self { _folder: own, offset, variables };
        clock.set("+0s");
        let binaries = Binaries::find(None).unwrap();
        fs::create_dir(&folder).unwrap();
        let exports: Vec<_> =
            clock.variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        for program in fs::read_dir(binaries.folder()).unwrap().flatten() {
            let (wrapper, real) = (folder.join(program.file_name()), program.path());
            fs::write(&wrapper, format!("#!/bin/sh\n{}exec '{}' \"$@\"\n", exports.concat(), real.display())).unwrap();
            fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = platform.dir().join("millrace.toml");
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().find(|line| line.starts_with("# bin_dir = ")).unwrap();
        fs::write(&path, text.replace(line, &format!("bin_dir = \"{}\"", folder.display()))).unwrap();
        clock
    }

    fn set(&self, offset: &str) {
        // replaced whole: a process may read it at any moment
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(new, &self.offset).unwrap();
    }

    fn up(&self, platform: &Platform, arguments: &[&str]) {
        let dir = platform.dir();
        let mut all = vec!["--dir", dir.to_str().unwrap(), "up", "-d"];
        all.extend(arguments);
        let variables: Vec<_> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run(&all, &variables).ok();
    }
}

/// Seconds that the primary's clock is ahead of this test's.
fn ahead(platform: &Platform) -> f64 {
    let theirs: f64 = platform.sql("primary", "SELECT extract(epoch FROM clock_timestamp())").parse().unwrap();
    let ours = fs::metadata({
        let path = platform.dir().join("now");
        fs::write(&path, b"").unwrap();
        path
    });
    theirs - ours.unwrap().modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Moves one customer to `city`, and waits until the star has this as the customer's last version.
fn moves(platform: &Platform, city: &str) {
    platform.sql(
        "primary",
        &format!("UPDATE operational.customers SET city = '{city}' WHERE customer_id = (SELECT min(customer_id) FROM operational.customers)"),
    );
    let there = format!("SELECT count(*) FROM warehouse.dim_customer WHERE city = '{city}' AND is_current");
    wait_until(city, || platform.sql("warehouse", &there) == "1");
}

#[test]
fn a_clock_that_is_set_back_changes_no_result() {
    let platform = Platform::init();
    let clock = Clock::under(&platform);
    clock.up(&platform, &["--sample", "--simulate", "50"]);
    assert!(ahead(&platform).abs() < 60.0);
    moves(&platform, "Before");
    clock.set("-2h");
    wait_until("the primary's clock to be back", || ahead(&platform) < -7000.0);
    // the later change has the earlier time
    moves(&platform, "Back then");
    platform.prove();
    let status = platform.status();
    assert_eq!(status["capture"]["state"], "streaming", "{status:#}");
    wait_until("health", || platform.run(&["health"]).code == 0);

    // a restart, and the right time again
    platform.down();
    clock.up(&platform, &["--simulate", "50"]);
    assert!(ahead(&platform) < -7000.0);
    moves(&platform, "After a restart");
    platform.prove();
    clock.set("+0s");
    wait_until("the primary's clock to be right", || ahead(&platform).abs() < 60.0);
    moves(&platform, "Now");
    platform.prove();
    let current = "SELECT count(*) - count(DISTINCT customer_id) FROM warehouse.dim_customer WHERE is_current AND customer_sk > 0";
    assert_eq!(platform.sql("warehouse", current), "0", "a customer has two current versions");
    let versions =
        "SELECT count(*) FROM warehouse.dim_customer WHERE city IN ('Before', 'Back then', 'After a restart', 'Now')";
    assert!(platform.sql("warehouse", versions).parse::<u32>().unwrap() >= 1);
    platform.down();
}
