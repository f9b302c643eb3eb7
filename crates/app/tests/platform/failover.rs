//! The primary changes under a whole platform: what was acknowledged stays, capture goes on, `prove` is clean.

use std::process::Command;

use crate::{
    browser::OpenPage,
    harness::{Load, Platform, kill, wait_until},
};

pub(crate) fn primary(platform: &Platform) -> (String, u32) {
    let status = platform.status();
    let node = status["nodes"].as_array().unwrap().iter().find(|node| node["role"] == "primary").unwrap().clone();
    (node["name"].as_str().unwrap().to_owned(), u32::try_from(node["pid"].as_u64().unwrap_or(0)).unwrap())
}

/// A failover loses nothing: every acknowledged commit is on a replica, and the replicas have capture's slot.
pub(crate) fn safe(platform: &Platform) {
    // there, and moved on with the primary's
    let position = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'millrace'";
    let reached = platform.sql("primary", position);
    let there = format!("SELECT count(*) FROM ({position}) s WHERE confirmed_flush_lsn >= '{reached}'");
    let slots = |status: &serde_json::Value| {
        let nodes = status["nodes"].as_array().unwrap();
        let streams = |n: &&serde_json::Value| n["role"] == "replica" && n["streaming"] == true;
        let replicas: Vec<_> = nodes.iter().filter(streams).collect();
        replicas.len() == 2
            && replicas.iter().all(|n| {
                let name = n["name"].as_str().unwrap();
                platform.try_sql(name, &there).stdout.trim() == "1"
            })
    };
    wait_until("a cluster that is safe", || {
        let cluster = platform.run(&["cluster", "status", "--json"]).json();
        cluster["members"].as_array().unwrap().len() == 2 && slots(&platform.status())
    });
}

fn another_primary(platform: &Platform, than: &str) -> String {
    wait_until("another primary", || {
        let cluster = platform.run(&["cluster", "status", "--json"]).json();
        cluster["primary_ready"] == true && cluster["primary"] != than
    });
    primary(platform).0
}

fn arrives(platform: &Platform) {
    let newest = "SELECT max(payment_id) FROM";
    let paid = platform.sql("primary", &format!("{newest} operational.payments"));
    wait_until("what was paid to arrive", || {
        let seen = platform.sql("warehouse", &format!("{newest} warehouse.fact_payments"));
        seen.parse::<u64>().unwrap() >= paid.parse::<u64>().unwrap()
    });
}

#[test]
fn the_primary_is_killed_frozen_and_switched_while_customers_pay() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    safe(&platform);
    let load = Load::on(&platform, "50");
    let (first, pid) = primary(&platform);
    kill(pid, "KILL");
    let second = another_primary(&platform, &first);
    arrives(&platform);
    platform.prove();

    safe(&platform);
    let (_, pid) = primary(&platform);
    let stop = format!("kill -STOP {pid} $(pgrep -P {pid})");
    assert!(Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    let third = another_primary(&platform, &second);
    arrives(&platform);

    safe(&platform);
    let next = if third == first { &second } else { &first };
    let said = platform.run(&["cluster", "switchover", "--to", next]).ok();
    assert!(said.contains(&format!("{next} is the primary")), "{said}");
    arrives(&platform);
    drop(load);
    platform.prove();
    let history = platform.run(&["cluster", "history"]).ok();
    assert!(
        history.contains("was killed by signal 9") && history.contains("did not answer and was killed"),
        "{history}"
    );

    // the record says who it is, also to a platform that starts
    platform.down();
    platform.up(&[]);
    assert_eq!(primary(&platform).0, *next);
    platform.prove();
    platform.down();
}

#[test]
fn an_operator_decides() {
    let platform = Platform::init();
    let said = platform.up(&[]);
    safe(&platform);
    let (first, pid) = primary(&platform);
    let refused = platform.run(&["cluster", "switchover", "--to", &first]).failed(1, "no replica that streams");
    assert!(refused.contains("millrace cluster status"), "{refused}");
    platform.run(&["cluster", "switchover", "--to", "zebra"]).failed(1, "zebra is no replica that streams");
    platform.run(&["cluster", "failover", "--to", "b"]).failed(2, "nothing was done");

    platform.run(&["cluster", "pause"]).ok();
    assert!(platform.run(&["cluster", "status"]).ok().contains("paused"));
    kill(pid, "KILL");
    wait_until("the same primary", || {
        let (name, now) = primary(&platform);
        // a process is there before it can be asked
        let ready = || platform.run(&["cluster", "status", "--json"]).json()["primary_ready"] == true;
        name == first && now != pid && now != 0 && ready()
    });
    platform.run(&["cluster", "resume"]).ok();
    safe(&platform);

    let other = if first == "b" { "c" } else { "b" };
    platform.run(&["cluster", "failover", "--to", other, "--yes"]).ok();
    assert_eq!(another_primary(&platform, &first), other);
    safe(&platform);
    platform.run(&["cluster", "reinit", &first, "--yes"]).ok();
    safe(&platform);
    the_open_page_follows_a_switchover(&platform, &said, other, &first);
    platform.prove();
    platform.down();
}

/// What a person sees who has the console open. `said`: by the first start.
fn the_open_page_follows_a_switchover(platform: &Platform, said: &str, from: &str, to: &str) {
    let mut page = OpenPage::begin("cluster.mjs", platform, said);
    platform.run(&["cluster", "switchover", "--to", to]).ok();
    page.tell(&format!("{from} {to}"));
    let checks = page.rest();
    assert_eq!(checks.len(), 2, "{checks:#?}");
}
