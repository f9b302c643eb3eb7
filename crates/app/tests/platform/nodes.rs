//! Nodes come and go while customers pay.

use std::{fs, net::TcpListener};

use crate::{
    failover::safe,
    harness::{Load, Platform, wait_until},
};

fn has(platform: &Platform, node: &str) -> bool {
    platform.run(&["cluster", "status"]).ok().lines().any(|line| line.starts_with(&format!("{node} ")))
}

#[test]
fn a_node_is_added_another_removed_and_nothing_is_written_that_is_refused() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    safe(&platform);
    let load = Load::on(&platform, "50");
    let file = platform.dir().join("millrace.toml");
    let before = fs::read_to_string(&file).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for (wrong, code, words) in [
        (&["add-node", "a"][..], 2, "there is a node a already"),
        (&["add-node", "Big"], 1, "`B` may not be in a name"),
        (&["add-node", "d", "--host", "10.0.0.1"], 2, "all nodes are on this host"),
        (&["add-node", "d", "--port", &port], 1, "is in use"),
        (&["remove-node", "zebra", "--yes"], 2, "one of a, b, c"),
        (&["remove-node", "a", "--yes"], 1, "millrace cluster switchover"),
    ] {
        let said = platform.run(&[&["cluster"], wrong].concat()).failed(code, words);
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), before, "{wrong:?}");
    }

    let said = platform.run(&["cluster", "add-node", "d"]).ok();
    assert!(said.contains("d joins") && said.contains("d streams"), "{said}");
    let count = "SELECT count(*) > 0 FROM operational.payments";
    // it may be restarted once for the slot of capture
    wait_until("the customers' payments on it", || platform.try_sql("d", count).stdout.trim() == "t");
    let said = platform.run(&["cluster", "remove-node", "b", "--yes"]).ok();
    assert!(said.contains("b has left; delete") && !has(&platform, "b"), "{said}");
    wait_until("no slot of it", || {
        platform.sql("primary", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'node_b'") == "0"
    });
    assert!(platform.dir().join("data/nodes/b/data/PG_VERSION").exists());
    safe(&platform);

    // the newcomer takes over, and the warehouse follows it
    platform.run(&["cluster", "switchover", "--to", "d"]).ok();
    drop(load);
    platform.prove();
    platform.down();
    let said = platform.run(&["cluster", "remove-node", "c", "--yes"]).ok();
    assert!(said.contains("c is not in millrace.toml any more"), "{said}");
    platform.run(&["cluster", "remove-node", "d", "--yes"]).failed(1, "d is the primary");
    platform.up(&[]);
    assert!(has(&platform, "d") && !has(&platform, "c"));
    wait_until("no slot of it", || {
        platform.sql("primary", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'node_c'") == "0"
    });
    platform.prove();
    platform.down();
}
