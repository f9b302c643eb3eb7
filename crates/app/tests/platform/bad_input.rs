//! Mistakes that people make: each gets a message that names the place and what to do, and changes nothing.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use crate::harness::{Platform, edit, run, run_in};

/// Replaces what differs from run to run.
fn settled(platform: &Platform, text: &str) -> String {
    let mut text = text.replace(platform.dir().to_str().unwrap(), "DIR");
    for offset in 0..8 {
        text = text.replace(&(platform.base_port + offset).to_string(), &format!("PORT+{offset}"));
    }
    text
}

#[test]
fn a_folder_without_a_platform() {
    let folder = tempfile::tempdir().unwrap();
    let said = run_in(folder.path(), &["status"], &[]);
    let text = said.failed(1, "there is no platform in");
    assert!(text.contains("millrace init --pack loans"), "{text}");
}

#[test]
fn an_unknown_pack() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("p");
    let text =
        run(&["init", "--pack", "lones", target.to_str().unwrap()], &[]).failed(1, "there is no pack called `lones`");
    assert!(text.contains("did you mean `loans`?"), "{text}");
    assert!(!target.exists());
}

#[test]
fn a_folder_that_is_not_empty() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("precious"), "x").unwrap();
    run(&["init", "--pack", "loans", folder.path().to_str().unwrap()], &[]).failed(1, "is not empty");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_unknown_word_is_wrong_usage() {
    run(&["stauts"], &[]).failed(2, "unrecognized subcommand 'stauts'");
    run(&["load", "sample", "--scale", "0"], &[]).failed(2, "0 is not in 1..=1000");
}

#[test]
fn malformed_and_mistaken_configuration() {
    let platform = Platform::init();
    edit(&platform, "[warehouse]", "[warehouse]\nmemroy_limit = \"2GiB\"\n");
    insta::assert_snapshot!("unknown_key", settled(&platform, &platform.run(&["check"]).failed(1, "memroy_limit")));

    let platform = Platform::init();
    edit(&platform, "[console]", "[console\n");
    insta::assert_snapshot!("malformed", settled(&platform, &platform.run(&["up"]).failed(1, "millrace.toml")));
}

#[test]
fn secrets_that_others_can_read() {
    let platform = Platform::init();
    let path = platform.dir().join("secrets.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let text = platform.run(&["up"]).failed(1, "is open to others");
    assert!(text.contains("chmod 600"), "{text}");
}

#[test]
fn ports_in_use() {
    let platform = Platform::init();
    for (offset, what) in [(0, ""), (3, "warehouse"), (4, "console"), (5, "proxy"), (6, "proxy")] {
        let _taken = TcpListener::bind(("127.0.0.1", platform.base_port + offset)).unwrap();
        let text = platform.run(&["up"]).failed(1, &format!("{}", platform.base_port + offset));
        assert!(text.contains("in use") && text.contains(what) && text.contains("ss -ltnp"), "{text}");
    }
}

#[test]
fn no_postgresql() {
    let platform = Platform::init();
    let empty = tempfile::tempdir().unwrap();
    edit(&platform, "[postgres]", &format!("[postgres]\nbin_dir = \"{}\"\n", empty.path().display()));
    let text = platform.run(&["up"]).failed(1, "no PostgreSQL");
    assert!(text.contains("apt install postgresql-15"), "{text}");
}

#[test]
fn a_damaged_warehouse_file() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    platform.down();
    let file = platform.data().join("warehouse/warehouse.duckdb");
    let mut bytes = fs::read(&file).unwrap();
    bytes[..4096].fill(0x5a);
    fs::write(&file, bytes).unwrap();
    let text = platform.run(&["up"]).failed(1, "warehouse.duckdb");
    assert!(text.contains("hint:"), "{text}");
    // the way back that the hint names
    platform.up(&["--recopy"]);
    platform.prove();
}

#[test]
fn a_data_directory_of_another_version() {
    let platform = Platform::init();
    platform.up(&[]);
    platform.down();
    fs::write(platform.data().join("nodes/a/data/PG_VERSION"), "9.6\n").unwrap();
    let text = platform.run(&["up"]).failed(1, "9.6");
    assert!(text.contains("pg_upgrade"), "{text}");
}

#[test]
fn a_data_directory_of_another_owner() {
    if !rustix::process::geteuid().is_root() {
        // only root can give a folder away, and only root's servers run as someone else
        return;
    }
    let platform = Platform::init();
    platform.up(&[]);
    platform.down();
    std::os::unix::fs::chown(platform.data().join("nodes/a/data"), Some(0), Some(0)).unwrap();
    let text = platform.run(&["up"]).failed(1, "belongs to root");
    assert!(text.contains("chown"), "{text}");
}

#[test]
fn a_benchmark_without_its_peer() {
    let nowhere = tempfile::tempdir().unwrap();
    let path = [("PATH", nowhere.path().to_str().unwrap())];
    let text = run(&["bench", "failover"], &path).failed(1, "etcd does not run");
    assert!(text.contains("apt install etcd-server"), "{text}");
}
