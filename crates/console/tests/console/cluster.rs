//! The page of the cluster: what it says of the primary, of trouble, and of a history that others wrote.

use std::time::Duration;

use axum::http::StatusCode;
use millrace_base::Micros;
use millrace_contract::{
    cluster::{Entry, Event},
    operate::OperateError,
};

use super::Bench;

#[tokio::test]
async fn the_cluster_says_who_is_the_primary_and_what_has_happened() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/cluster").await.text;
    for part in [
        "a is the primary and accepts writes",
        "<dt>Since</dt><dd>2024-05-31 21:57:00 UTC<span class=\"muted\"> · for 2 h 3 min</span>",
        "<dt>Term</dt><dd>4</dd>",
        "every acknowledged commit is on the primary and on any 1 of b, c",
        "<span class=\"state good\">on</span> a lost primary is replaced",
        "streams from a, 18440 bytes behind",
        "<span class=\"state warn\">election</span>",
        "a elected after c: has not answered for 3.0 s",
        "a accepts writes, 231 ms after its election; writes were away for up to 3412 ms",
        "every commit is on the primary and on any 1 of a, b",
        "failover paused by an operator",
        "data-refresh=\"/cluster\"",
        "<a href=\"/cluster\" aria-current=\"page\">Cluster</a>",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    let places: Vec<_> = ["a elected after c", "c elected after b", "b elected after a"]
        .map(|part| page.find(part).expect("each election is there"))
        .into();
    assert!(places.is_sorted(), "the newest first");

    // one of a node comes and goes with the beat of the figures
    bench.clock.advance(Duration::from_secs(40));
    let page = bench.get("/cluster").await.text;
    assert!(page.contains("verdict warn") && page.contains("→ millrace logs c"), "{page}");
}

#[tokio::test]
async fn a_cluster_in_trouble_stands_out() {
    let bench = Bench::logged_in().await;
    bench.source.change(|cluster| {
        cluster.paused = true;
        (cluster.members, cluster.quorum) = (vec![], 0);
    });
    let page = bench.get("/cluster").await.text;
    assert!(page.contains("verdict warn") && page.contains("<dd>commits are on the primary alone</dd>"), "{page}");
    assert!(page.contains("<span class=\"state warn\">paused</span> a crashed primary is started again; `millrace cluster resume` ends that"));
    bench.source.change(|cluster| cluster.failover = false);
    assert!(bench.get("/cluster").await.text.contains("<span class=\"state busy\">off</span> by [cluster] failover"));

    bench.source.stop_primary();
    let page = bench.get("/cluster").await.text;
    assert!(page.contains("verdict bad") && page.contains("a is the primary and does not accept writes now"), "{page}");
    bench.source.rewrite(|events| {
        let elected = events.as_ref().unwrap().iter().position(|entry| entry.event.kind() == "election").unwrap();
        events.as_mut().unwrap().drain(..elected);
    });
    assert!(bench.get("/cluster").await.text.contains("a was elected and does not accept writes yet"));
    bench.source.change(|cluster| cluster.primary = None);
    assert!(bench.get("/cluster").await.text.contains("No node is the primary"));
}

#[tokio::test]
async fn a_history_may_be_hostile_long_or_unreadable() {
    let bench = Bench::logged_in().await;
    let elected = |at: i64| Entry {
        at: Micros(at * 1_000_000),
        term: 9,
        event: Event::Elected {
            from: "<i>a</i>".into(),
            to: "b".into(),
            why: format!("<script>alert({at})</script>\" onclick=\"x"),
            missing_bytes: Some(7),
        },
    };
    bench.source.rewrite(|events| *events = Ok((0..50).rev().map(elected).collect()));
    let page = bench.get("/cluster").await.text;
    let hostile = "b elected after &lt;i&gt;a&lt;/i&gt;: &lt;script&gt;alert(49)&lt;/script&gt;&quot; onclick=&quot;x; \
                   up to 7 bytes of log of &lt;i&gt;a&lt;/i&gt; are lost";
    assert!(page.contains(hostile) && !page.contains("<script>alert") && !page.contains("<i>a"), "{page}");
    assert!(page.contains("<span class=\"state bad\">election</span>"), "what may be lost stands out");
    assert_eq!(page.matches("b elected after").count(), 20);
    assert!(page.contains("<a href=\"/cluster?events=all\">All events</a>"));
    assert!(page.contains("longer ago than the history goes back"), "a promotion is not in it");
    let all = bench.get("/cluster?events=all").await.text;
    assert_eq!(all.matches("b elected after").count(), 50);
    assert!(all.contains("data-refresh=\"/cluster?events=all\"") && !all.contains("All events"));

    bench.source.rewrite(|events| *events = Ok(vec![]));
    bench.source.change(|cluster| cluster.term = 1);
    let page = bench.get("/cluster").await.text;
    assert!(
        page.contains("Nothing has happened to the primary yet.") && page.contains("<dd>the cluster was made</dd>")
    );

    bench.source.rewrite(|events| {
        *events = Err(OperateError { message: "it cannot be read".into(), hint: Some("look <there>".into()) });
    });
    let page = bench.get("/cluster").await;
    assert_eq!(page.status, StatusCode::OK, "the nodes are shown without it");
    assert!(page.text.contains("it cannot be read") && page.text.contains("look &lt;there&gt;"), "{}", page.text);
    assert!(page.text.contains("streams from a"));
}
