//! An operator changes the servers' settings while customers pay.

use crate::{
    failover::{primary, safe},
    harness::{Load, Platform, edit, wait_until},
};

const NODES: [&str; 3] = ["a", "b", "c"];

#[test]
fn settings_change_under_load_one_server_after_the_other() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    safe(&platform);
    let load = Load::on(&platform, "50");
    let none = "# settings = { shared_buffers = \"1GB\", work_mem = \"32MB\" }";
    let wrong = "settings = { shared_buffers = \"plenty\" }";
    edit(&platform, none, wrong);
    let said = platform.run(&["cluster", "reload"]).failed(1, "invalid value for parameter \"shared_buffers\"");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(
        platform.run(&["cluster", "restart"]).ok().trim(),
        "no server waits for a restart; --all restarts every one"
    );

    let good = "settings = { shared_buffers = \"160MB\", work_mem = \"9MB\", max_connections = 250 }";
    edit(&platform, wrong, good);
    let said = platform.run(&["cluster", "reload"]).ok();
    assert_eq!(said.trim(), "servers are given max_connections, shared_buffers, work_mem");
    let show = |node: &str, name: &str| platform.sql(node, &format!("SHOW {name}"));
    wait_until("work_mem everywhere", || NODES.iter().all(|node| show(node, "work_mem") == "9MB"));
    wait_until("a word on what waits", || {
        let said = platform.run(&["cluster", "status"]).ok();
        said.contains("settings wait for a restart: max_connections, shared_buffers")
            && said.contains("→ millrace cluster restart")
    });
    let (first, _) = primary(&platform);
    let said = platform.run(&["cluster", "restart"]).ok();
    assert_eq!(said.matches("runs again").count(), 3, "{said}");
    for node in NODES {
        assert_eq!(
            (show(node, "shared_buffers"), show(node, "max_connections")),
            ("160MB".into(), "250".into()),
            "{node}"
        );
    }
    assert_eq!(
        primary(&platform).0,
        first,
        "replicas need as many connections as their primary: it was restarted in place"
    );

    // fewer buffers need no more than another primary for a moment
    edit(&platform, "160MB", "144MB");
    platform.run(&["cluster", "reload"]).ok();
    wait_until("servers that wait", || {
        platform.run(&["cluster", "status"]).ok().matches("wait for a restart").count() == 3
    });
    safe(&platform);
    let said = platform.run(&["cluster", "restart"]).ok();
    assert!(said.contains("is the primary"), "{said}");
    assert_ne!(primary(&platform).0, first);
    for node in NODES {
        assert_eq!(show(node, "shared_buffers"), "144MB", "{node}");
    }
    let one = platform.run(&["cluster", "restart", "zebra"]).failed(2, "there is no node zebra");
    assert!(one.contains("one of a, b, c"), "{one}");
    drop(load);
    platform.prove();
    let history = platform.run(&["cluster", "history"]).ok();
    assert!(
        history.contains("servers are given shared_buffers") && history.contains("an operator wants a restarted"),
        "{history}"
    );
    platform.down();
}
