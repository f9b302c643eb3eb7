//! A cluster of three hosts as its users run it.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use millrace_testkit::Sandbox;

use crate::{
    harness::{kill, run, wait_until},
    hosts::{Hosts, NODES},
};

const PAY: &str = "INSERT INTO operational.customers (full_name) VALUES ('Amina Otieno')";
const PAID: &str = "SELECT count(*) FROM operational.customers";

#[test]
fn a_host_dies_another_freezes_and_applications_find_the_primary() {
    let mut hosts = Hosts::start();
    let first = hosts.primary();
    assert_eq!(first, 0);
    assert_eq!(hosts.api(0, "/primary").0, 200);
    assert_eq!((hosts.api(1, "/primary").0, hosts.api(1, "/replica").0, hosts.api(0, "/replica").0), (503, 200, 503));
    assert_eq!(hosts.api(2, "/replica?lag=1MB").0, 200);
    assert_eq!(hosts.api(2, "/replica?lag=much").0, 400);
    assert_eq!(hosts.api(2, "/cluster").1["members"].as_array().unwrap().len(), 3);
    // at 3 a.m. nobody thinks of which host has the platform itself
    wait_until("health", || hosts.said(1, &["health", "--json"]).stdout.contains("\"healthy\": true"));
    let said = hosts.said(1, &["status"]).ok();
    assert!(said.contains("all is well") && said.contains("runs on another host"), "{said}");
    // any host's proxy leads to the primary, and to the schema of the pack
    hosts.sql(2, PAY).ok();

    hosts.kill(first);
    let killed = Instant::now();
    hosts.sql(2, PAY).ok();
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let second = hosts.primary();
    assert_ne!(second, first);
    assert_eq!(hosts.api(second, "/primary").0, 200);
    let history = hosts.said(2, &["cluster", "history"]).ok();
    assert!(history.contains("its agent is not heard"), "{history}");
    hosts.begin(first);
    hosts.ready();
    assert_eq!(hosts.sql(first, PAID).ok(), "2");

    // one that freezes is replaced, and when it wakes up it is a replica
    let other = (0..NODES.len()).find(|node| *node != second).unwrap();
    hosts.signal(second, "-STOP");
    // what is under way then may be lost, and is said to be unknown
    wait_until("another primary", || hosts.sql(other, PAY).code == 0);
    hosts.signal(second, "-CONT");
    hosts.ready();
    assert_ne!(hosts.primary(), second);
    assert!(hosts.sql(second, PAID).ok().parse::<u32>().unwrap() >= 3);

    // an operator's word is said on any host
    let third = hosts.primary();
    let to = (0..NODES.len()).find(|node| *node != third && *node != second).unwrap();
    let said = hosts.said(second, &["cluster", "switchover", "--to", NODES[to]]).ok();
    assert!(said.contains("is the primary"), "{said}");
    hosts.sql(third, PAY).ok();
    hosts.down(third);
    hosts.sql(to, PAY).ok();
}

/// The platform is on the last of the first three.
#[test]
fn a_host_joins_and_another_leaves() {
    let mut hosts = Hosts::start();
    let (last, new) = (NODES.len() - 1, NODES.len());
    hosts.said(last, &["up", "-d", "--sample"]).ok();
    hosts.said(0, &["cluster", "add-node", "d"]).failed(2, "say where this one is to be: --host ADDRESS");
    let place = hosts.address(new);
    for node in 0..NODES.len() {
        let said = hosts.said(node, &["cluster", "add-node", "d", "--host", &place]).ok();
        assert!(said.contains("d joins") && said.contains("millrace agent d"), "{said}");
    }
    hosts.join(0, new);
    hosts.until("a promise of four", |view| view["members"].as_array().is_some_and(|members| members.len() == 3));
    let status = hosts.said(last, &["status", "--json"]).json();
    assert!(status["nodes"].as_array().unwrap().iter().any(|node| node["host"] == place), "{status}");
    hosts.sql(new, PAY).ok();

    let said = hosts.said(0, &["cluster", "remove-node", "b", "--yes"]).failed(1, "the agent of b still runs");
    assert!(!said.contains("joins"), "{said}");
    assert!(fs::read_to_string(hosts.dir(0).join("millrace.toml")).unwrap().contains("name = \"b\""), "as it was");
    hosts.down(1);
    for node in [0, last, new] {
        wait_until("a promise without b", || hosts.said(node, &["cluster", "remove-node", "b", "--yes"]).code == 0);
    }
    hosts.until("three nodes", |view| view["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3));
    hosts.ready();
    let said = hosts.said(0, &["cluster", "switchover", "--to", "d"]).ok();
    assert!(said.contains("d is the primary"), "{said}");
    hosts.sql(0, PAY).ok();
    assert_eq!(
        hosts.psql(last, "d", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'node_b'").ok().trim(),
        "0"
    );
    wait_until("the warehouse", || hosts.said(last, &["prove"]).code == 0);
    hosts.down(last);
}

/// What applications see while the warehouse follows: the last host has the platform beside its agent.
#[test]
fn the_warehouse_follows_whoever_is_the_primary() {
    let mut hosts = Hosts::start();
    let last = NODES.len() - 1;
    hosts.sql(0, PAY).ok();
    let up = hosts.said(last, &["up", "-d", "--sample"]).ok();
    assert!(up.contains("is up"), "{up}");
    let prove = |hosts: &Hosts| {
        let said = hosts.said(last, &["prove", "--json"]);
        let proof = said.json();
        assert!(proof["models"].as_array().is_some_and(|models| models.len() >= 3), "{proof:#}");
    };
    prove(&hosts);
    let status = hosts.said(last, &["status", "--json"]).json();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status:#}");
    let listeners: Vec<_> = status["listeners"].as_array().unwrap().iter().map(|of| of["name"].clone()).collect();
    assert_eq!(listeners, ["console", "warehouse"], "the agent has the proxy");

    // the primary's host dies, and what is paid afterwards arrives
    let first = hosts.primary();
    assert_ne!(first, last);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'millrace'";
    wait_until("slots for capture on every host", || {
        NODES.iter().all(|node| hosts.psql(last, node, slots).stdout.trim() == "1")
    });
    hosts.kill(first);
    wait_until("another primary", || hosts.sql(last, PAY).code == 0);
    let paid = hosts.sql(last, "SELECT max(customer_id) FROM operational.customers").ok();
    wait_until("what was written to arrive", || {
        let seen = hosts.psql(last, "warehouse", "SELECT max(customer_id) FROM warehouse.dim_customer").stdout;
        seen.trim() == paid
    });
    prove(&hosts);
    assert_eq!(hosts.psql(last, "primary", "SELECT pg_is_in_recovery()").ok().trim(), "f");

    // it stops and starts beside the agent, which goes on
    let platform = fs::read_to_string(hosts.dir(last).join("data/platform/run/platform.lock")).unwrap();
    kill(platform.trim().parse().unwrap(), "KILL");
    hosts.sql(last, PAY).ok();
    hosts.said(last, &["up", "-d"]).ok();
    hosts.begin(first);
    hosts.ready();
    prove(&hosts);
    hosts.said(last, &["nuke", "--yes"]).failed(1, "millrace down");
    let down = hosts.said(last, &["down"]).ok();
    assert!(down.contains("stopped the platform"), "{down}");
    hosts.agents[last].take().unwrap().wait().unwrap();
}

#[test]
fn words_of_the_wrong_kind_of_platform_are_refused() {
    let hosts_taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Sandbox::new();
    let dir = folder.path().join("p");
    let dir = dir.to_str().unwrap();
    let etcd = format!("http://127.0.0.1:{}", hosts_taken.local_addr().unwrap().port());
    run(&["init", "--pack", "loans", "--host", "127.0.1.1", dir], &[]).failed(2, "--etcd");
    run(&["init", "--pack", "loans", "--host", "127.0.1.1", "--host", "127.0.1.2", "--etcd", &etcd, dir], &[]).ok();
    run(&["--dir", dir, "agent", "z"], &[]).failed(1, "there is no node z");
    let file = format!("{dir}/millrace.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("host = \"127.0.1.1\"\n", "", 1)).unwrap();
    run(&["--dir", dir, "check"], &[]).failed(1, "node `a` has no host");
}
