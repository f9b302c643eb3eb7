//! Processes die at every moment; nothing is lost, nothing comes twice.

use std::process::Stdio;

use crate::{
    failover::safe,
    harness::{Load, Platform, alive, command, kill, wait_until},
};

fn payments(platform: &Platform, target: &str) -> u64 {
    let table = if target == "warehouse" { "warehouse.fact_payments" } else { "operational.payments" };
    platform.sql(target, &format!("SELECT count(*) FROM {table}")).parse().unwrap()
}

#[test]
fn a_killed_platform_adopts_its_servers() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    let load = Load::on(&platform, "50");
    let before = payments(&platform, "warehouse");
    wait_until("load", || payments(&platform, "warehouse") > before);
    // replicas restart once for the slot that capture just made
    safe(&platform);
    let servers = platform.node_pids();
    assert_eq!(servers.len(), 3);

    platform.kill_platform();
    assert!(servers.iter().all(|pid| alive(u32::try_from(*pid).unwrap())), "servers died with the platform");
    platform.up(&[]);
    assert_eq!(platform.node_pids(), servers, "the servers were not adopted");
    platform.prove();
    drop(load);
    platform.prove();

    // and `down` alone stops what a killed platform left
    platform.kill_platform();
    assert!(platform.run(&["down"]).ok().contains("stopped 3 servers"));
    assert!(servers.iter().all(|pid| !alive(u32::try_from(*pid).unwrap())));
}

#[test]
fn killed_servers_come_back_and_capture_goes_on() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    let _load = Load::on(&platform, "50");
    for node in ["a", "b"] {
        // until then a replica may restart by itself, for the slot of capture
        safe(&platform);
        let status = platform.status();
        let found = status["nodes"].as_array().unwrap().iter().find(|n| n["name"] == node).unwrap().clone();
        let pid = u32::try_from(found["pid"].as_u64().unwrap()).unwrap();
        kill(pid, "KILL");
        wait_until("the server to be back", || {
            let status = platform.status();
            let now = status["nodes"].as_array().unwrap().iter().find(|n| n["name"] == node).unwrap().clone();
            now["state"] == "running" && now["pid"].as_u64() != Some(u64::from(pid)) && now["pid"].is_u64()
        });
    }
    wait_until("capture to go on", || platform.status()["capture"]["state"] == "streaming");
    let before = payments(&platform, "warehouse");
    wait_until("new payments", || payments(&platform, "warehouse") > before);
    platform.prove();
}

#[test]
fn dying_at_every_failpoint_of_a_batch_loses_nothing() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    platform.down();
    for failpoint in [
        "batch.begin",
        "batch.after_raw",
        "batch.after_staging",
        "batch.after_dimensions",
        "batch.after_facts",
        "batch.before_commit",
        "batch.after_commit",
        "capture.before_commit",
        "capture.after_commit_before_feedback",
    ] {
        // the second batch dies; customers act the whole time
        let dir = platform.dir();
        let armed = format!("{failpoint}=2:abort");
        let mut child = command(&["--dir", dir.to_str().unwrap(), "--failpoint", &armed, "up", "--simulate", "50"])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{failpoint} was not reached");
        platform.up(&[]);
        platform.prove();
        platform.down();
    }
}

#[test]
fn dying_in_the_initial_copy_starts_it_again() {
    for failpoint in ["capture.during_copy", "batch.after_copy"] {
        let platform = Platform::init();
        let dir = platform.dir();
        let armed = format!("{failpoint}:abort");
        let mut child = command(&["--dir", dir.to_str().unwrap(), "--failpoint", &armed, "up", "--sample"])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(!child.wait().unwrap().success(), "{failpoint} was not reached");
        platform.up(&[]);
        assert_eq!(payments(&platform, "warehouse"), payments(&platform, "primary"));
        platform.prove();
        platform.down();
    }
}
