//! The primary moves; clients stay.

use std::sync::Arc;

use millrace_contract::{Topology, status::NodeRole, topology::NodeHealth};
use millrace_testkit::{TestServer, wait_until};

use millrace_proxy_tests::{LONG, Rig, alone, code, connect, node, pool_of, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_wait_for_the_next_primary() {
    let next = TestServer::start().await;
    next.client().await.batch_execute("CREATE TABLE here (i int)").await.unwrap();
    let server = TestServer::start().await;
    let mut rig = Rig::before(server, pool_of(2)).await;
    let (idle, busy) = (rig.client().await, rig.client().await);
    text(&idle, "SELECT 1").await;
    // no primary for a moment; a statement in flight is lost with the old one
    let change = async {
        let running = async || rig.handle.view().await.iter().flat_map(|v| &v.servers).any(|s| s.client.is_some());
        wait_until(LONG, || async { running().await }).await;
        rig.topology.send_replace(alone(&rig.server, 1, NodeHealth::Down));
    };
    let (lost, ()) = tokio::join!(busy.batch_execute("SELECT pg_sleep(60)"), change);
    assert_eq!(code(&lost.unwrap_err()), "57P01");
    let waits = async { text(&idle, "SELECT count(*) FROM here").await };
    let promote = async {
        let waiting = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|p| p.waiting == 1);
        wait_until(LONG, || async { waiting().await }).await;
        // the certificate of the test's other server is another authority's: the same server under a new epoch will do
        rig.topology.send_replace(alone(&rig.server, 2, NodeHealth::Ready));
        rig.server.client().await.batch_execute("CREATE TABLE IF NOT EXISTS here (i int)").await.unwrap();
    };
    rig.server.client().await.batch_execute("CREATE TABLE here (i int)").await.unwrap();
    let (count, ()) = tokio::join!(waits, promote);
    assert_eq!(count, "0");
    assert_eq!(text(&busy, "SELECT 1").await, "1");
    rig.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_clients_get_replicas_and_else_the_primary() {
    let rig = Rig::start(pool_of(2)).await;
    let mut config = rig.config();
    let reader = connect(&config_for(&mut config, rig.read_only.port())).await.unwrap();
    assert_eq!(text(&reader, "SELECT 1").await, "1");
    let role =
        async || rig.handle.view().await.iter().flat_map(|v| &v.servers).map(|s| s.node.role).collect::<Vec<_>>();
    assert_eq!(role().await, [NodeRole::Primary]);
    // the same server in another part: what matters here is who is asked
    let mut replica = node(&rig.server, NodeRole::Replica, NodeHealth::Ready);
    replica.name = "replica".to_owned();
    let primary = node(&rig.server, NodeRole::Primary, NodeHealth::Ready);
    rig.topology.send_replace(Arc::new(Topology { epoch: 1, nodes: vec![primary, replica] }));
    wait_until(LONG, || async {
        text(&reader, "SELECT 1").await;
        role().await == [NodeRole::Replica]
    })
    .await;
}

fn config_for(config: &mut tokio_postgres::Config, port: u16) -> tokio_postgres::Config {
    let mut other = tokio_postgres::Config::new();
    other.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
    other.password(config.get_password().unwrap_or_default());
    other
}
