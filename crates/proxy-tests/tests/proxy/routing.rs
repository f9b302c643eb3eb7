//! Reads go to a replica and everything else to the primary, and nobody reads what is older than what it wrote.

use std::sync::{Arc, atomic::Ordering};

use futures::TryStreamExt as _;
use millrace_base::Secret;
use millrace_contract::{
    Topology,
    status::NodeRole,
    topology::{NodeHealth, Replay},
};
use millrace_proxy::{Access, Counts, Options, Routing};
use millrace_testkit::{PASSWORD, TestServer, wait_until};
use tokio_postgres::Client;

use millrace_proxy_tests::{LONG, Raw, Rig, bind, code, execute, node, parse, pool_of, query, sync, text};

/// A primary and a replica behind a proxy that routes. How far the replica is, the test itself tells.
struct Routed {
    rig: Rig,
    replica: TestServer,
    replay: Arc<Replay>,
}

/// Says on which server it runs, by a function that does not write.
const WHERE: &str = "SELECT on_replica()";

impl Routed {
    async fn start(options: Options) -> Self {
        let server = TestServer::start().await;
        let client = server.client().await;
        client
            .batch_execute(
                "CREATE FUNCTION on_replica() RETURNS boolean STABLE LANGUAGE sql AS 'SELECT pg_is_in_recovery()';
                 CREATE TABLE t (i int);
                 CREATE FUNCTION pay() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING i';
                 CREATE VIEW paying AS SELECT pay();
                 CREATE VIEW harmless AS SELECT on_replica(), count(*) FROM t;
                 CREATE UNLOGGED TABLE fleeting (i int);
                 CREATE TABLE readings (temp int);
                 CREATE SEQUENCE s",
            )
            .await
            .unwrap();
        let replica = server.replica().await;
        let replay = Arc::new(Replay::default());
        let routing = Routing {
            replay: replay.clone(),
            user: "postgres".to_owned(),
            password: Secret::new(PASSWORD),
            tls: Some(server.client_tls()),
        };
        let rig = Rig::before(server, Options { routing: Some(routing), ..options }).await;
        let routed = Self { rig, replica, replay };
        routed.tell(NodeHealth::Ready);
        // until the proxy knows what the functions do, all is for the primary
        let client = routed.rig.client().await;
        let reads = async || {
            routed.catch_up().await;
            routed.on_replica(&client).await
        };
        wait_until(LONG, || async { reads().await }).await;
        routed
    }

    fn tell(&self, replica: NodeHealth) {
        let mut other = node(&self.replica, NodeRole::Replica, replica);
        other.name = "replica".to_owned();
        let primary = node(&self.rig.server, NodeRole::Primary, NodeHealth::Ready);
        self.rig.topology.send_replace(Arc::new(Topology { epoch: 1, nodes: vec![primary, other] }));
    }

    /// One round: waits until the replica has replayed what the primary has now, and says so.
    async fn catch_up(&self) {
        let round = self.replay.begin();
        let position = "SELECT pg_current_wal_insert_lsn()::text";
        let lsn: String = self.rig.server.client().await.query_one(position, &[]).await.unwrap().get(0);
        let replica = self.replica.client().await;
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        wait_until(LONG, || async { replica.query_one(&reached, &[]).await.unwrap().get::<_, bool>(0) }).await;
        self.replay.round_of("replica").store(round, Ordering::SeqCst);
    }

    async fn counts(&self, access: Access) -> Counts {
        let views = self.rig.handle.view().await;
        let pools = views.iter().flat_map(|view| &view.pools).filter(|pool| pool.key.access == access);
        pools.fold(Counts::default(), |all, pool| all.plus(&pool.counts))
    }

    async fn on_replica(&self, client: &Client) -> bool {
        text(client, WHERE).await == "t"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_statement_goes_where_it_can_be_done() {
    let routed = Routed::start(pool_of(4)).await;
    let client = routed.rig.client().await;
    for statement in [
        "INSERT INTO t VALUES (1)",
        "SELECT pay()",
        "SELECT * FROM paying",
        "SELECT * FROM fleeting",
        "SELECT nextval('s')",
        "SELECT * FROM t FOR UPDATE",
        "WITH gone AS (DELETE FROM t RETURNING *) SELECT count(*) FROM gone",
        "CREATE TEMP TABLE mine AS SELECT on_replica(); SELECT * FROM mine; DROP TABLE mine",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT set_config('work_mem', '3MB', false)",
        "BEGIN; INSERT INTO t SELECT 1; COMMIT",
        "SELECT txid_current()",
        "EXPLAIN SELECT 1",
    ] {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    routed.catch_up().await;
    for statement in [
        WHERE,
        "SELECT on_replica FROM harmless",
        "SELECT on_replica() FROM (SELECT max(temp) FROM readings) AS temp",
        "BEGIN READ ONLY; ",
        "/* millrace: replica */ SELECT pg_is_in_recovery()",
        "WITH t AS (SELECT on_replica() AS x) SELECT x FROM t",
    ] {
        if statement.starts_with("BEGIN") {
            client.batch_execute("BEGIN READ ONLY").await.unwrap();
            assert_eq!(text(&client, "SELECT pg_is_in_recovery()").await, "t");
            client.batch_execute("COMMIT").await.unwrap();
        } else {
            assert_eq!(text(&client, statement).await, "t", "{statement}");
        }
    }
    for statement in [
        "/* millrace: primary */ SELECT on_replica()",
        "SELECT on_replica() FROM t FOR UPDATE",
        "SELECT pg_is_in_recovery()",
    ] {
        assert_ne!(text(&client, statement).await, "t", "{statement}");
    }
    routed.catch_up().await;
    let copied = client.copy_out("COPY (SELECT on_replica()) TO STDOUT").await.unwrap();
    let copied: Vec<_> = copied.try_collect().await.unwrap();
    assert_eq!(copied.concat(), b"t\n");
    // the whole transaction stays where it began
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(text(&client, WHERE).await, "f");
    client.batch_execute("COMMIT").await.unwrap();
    // what a replica cannot do at all
    client.batch_execute("SET default_transaction_isolation = serializable").await.unwrap();
    assert_eq!(text(&client, WHERE).await, "f");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_reads_what_it_wrote() {
    let routed = Routed::start(pool_of(4)).await;
    let (client, other) = (routed.rig.client().await, routed.rig.client().await);
    assert!(!routed.on_replica(&client).await, "a new client sees what was committed before it came");
    routed.catch_up().await;
    assert!(routed.on_replica(&client).await && routed.on_replica(&other).await);

    routed.replica.client().await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    for count in 1..=3 {
        client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        assert_eq!(text(&client, "SELECT count(*) FROM t").await, count.to_string());
    }
    assert!(routed.on_replica(&other).await, "who has not written reads from the replica");
    assert_eq!(text(&other, "SELECT count(*) FROM t").await, "0");
    assert!(!routed.on_replica(&client).await);
    assert!(routed.counts(Access::ReadWrite).await.behind >= 4);
    // a read that went to the primary is no write
    routed.replica.client().await.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    routed.catch_up().await;
    assert!(routed.on_replica(&client).await);
    assert_eq!(text(&client, "SELECT count(*) FROM t").await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_ahead_is_not_sent_astray() {
    let routed = Routed::start(pool_of(4)).await;
    let mut raw = Raw::login(routed.rig.address);
    routed.catch_up().await;
    let before = routed.counts(Access::ReadOnly).await.transactions;
    let rows = |raw: &mut Raw| {
        let (mut tags, mut rows, mut answers) = (String::new(), Vec::new(), 0);
        while answers < 4 {
            let (tag, body) = raw.message();
            tags.push(char::from(tag));
            answers += usize::from(tag == b'Z');
            if tag == b'D' {
                rows.push(String::from_utf8_lossy(&body[6..]).into_owned());
            }
        }
        (tags, rows)
    };
    // simple queries, all at once: reads, a write, a read
    let writes = "INSERT INTO t VALUES (7)";
    raw.send(&[query(WHERE), query(WHERE), query(writes), query("SELECT on_replica() FROM t")].concat());
    assert_eq!(rows(&mut raw), ("TDCZTDCZCZTDCZ".to_owned(), vec!["t".into(), "t".into(), "f".into()]));
    // the same, extended
    routed.catch_up().await;
    let series = |text: &str| [parse("", text), bind(""), execute(), sync()].concat();
    raw.send(&[series(WHERE), series(WHERE), series(writes), series("SELECT on_replica() FROM t LIMIT 1")].concat());
    assert_eq!(rows(&mut raw), ("12DCZ12DCZ12CZ12DCZ".to_owned(), vec!["t".into(), "t".into(), "f".into()]));
    // a transaction that only reads, and what comes after it
    routed.catch_up().await;
    raw.send(&[query("BEGIN READ ONLY"), query(WHERE), query("COMMIT"), query(writes)].concat());
    assert_eq!(rows(&mut raw), ("CZTDCZCZCZ".to_owned(), vec!["t".into()]));
    // an error in the middle
    routed.catch_up().await;
    raw.send(&[query(WHERE), query("SELECT 1/0"), query(writes), query(WHERE)].concat());
    assert_eq!(rows(&mut raw), ("TDCZEZCZTDCZ".to_owned(), vec!["t".into(), "f".into()]));
    let after = routed.counts(Access::ReadOnly).await.transactions;
    assert!(after > before);
    // in pieces, byte by byte
    routed.catch_up().await;
    let whole = [query(WHERE), query(writes), series(WHERE), query("SELECT 1")].concat();
    for byte in whole {
        raw.send(&[byte]);
    }
    let (tags, _) = rows(&mut raw);
    assert_eq!(tags, "TDCZCZ12DCZTDCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_are_routed_each_time() {
    let routed = Routed::start(pool_of(4)).await;
    let client = routed.rig.client().await;
    let reads = client.prepare("SELECT on_replica(), $1::int").await.unwrap();
    let writes = client.prepare("INSERT INTO t VALUES ($1::int)").await.unwrap();
    for _ in 0..3 {
        routed.catch_up().await;
        assert!(client.query_one(&reads, &[&1]).await.unwrap().get::<_, bool>(0));
        assert_eq!(client.execute(&writes, &[&1]).await.unwrap(), 1);
        assert!(!client.query_one(&reads, &[&1]).await.unwrap().get::<_, bool>(0));
    }
    // what the function does is another thing now: known with the next look at the catalog
    let change =
        "CREATE OR REPLACE FUNCTION on_replica() RETURNS boolean VOLATILE LANGUAGE sql AS 'SELECT pg_is_in_recovery()'";
    client.batch_execute(change).await.unwrap();
    routed.catch_up().await;
    wait_until(LONG, || async { !client.query_one(&reads, &[&1]).await.unwrap().get::<_, bool>(0) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_replicas_the_primary_reads() {
    let mut routed = Routed::start(pool_of(2)).await;
    let client = routed.rig.client().await;
    routed.catch_up().await;
    assert!(routed.on_replica(&client).await);
    // told before it goes
    routed.tell(NodeHealth::Draining);
    wait_until(LONG, || async { !routed.on_replica(&client).await }).await;
    routed.tell(NodeHealth::Ready);
    wait_until(LONG, || async { routed.on_replica(&client).await }).await;
    // and not told: what was in flight is lost, what waits for a connection goes to the primary
    routed.replica.kill().await;
    let outcome = client.simple_query(WHERE).await;
    // the connection may be known to be gone already, or not
    assert!(outcome.as_ref().err().map(code).is_none_or(|code| code.starts_with("08") || code.starts_with("57")));
    wait_until(LONG, || async { client.simple_query(WHERE).await.is_ok() }).await;
    assert!(!routed.on_replica(&client).await);
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_keeps_on_a_replica_keeps_it_there() {
    let routed = Routed::start(pool_of(4)).await;
    let client = routed.rig.client().await;
    routed.catch_up().await;
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    client
        .batch_execute("DECLARE c CURSOR WITH HOLD FOR SELECT pg_is_in_recovery() FROM generate_series(1, 3)")
        .await
        .unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    for _ in 0..2 {
        assert_eq!(text(&client, "FETCH c").await, "t");
    }
    assert_eq!(code(&client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap_err()), "25006");
    client.batch_execute("CLOSE c").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    // a lock there would keep nobody from anything
    routed.catch_up().await;
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(code(&client.batch_execute("SELECT pg_advisory_xact_lock(1)").await.unwrap_err()), "0A000");
    let other = routed.rig.client().await;
    other
        .batch_execute("/* millrace: primary */ BEGIN READ ONLY; SELECT pg_advisory_xact_lock(1); COMMIT")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_replica_to_answer_is_bounded() {
    let routed = Routed::start(pool_of(4)).await;
    let mut raw = Raw::login(routed.rig.address);
    routed.catch_up().await;
    raw.send(&query("SELECT count(*) FROM generate_series(1, 1000000000)"));
    let on_replica =
        async || routed.rig.handle.view().await.iter().flat_map(|v| &v.servers).any(|s| s.client.is_some());
    wait_until(LONG, || async { on_replica().await }).await;
    // far more than sockets hold: it must come to a stop
    raw.socket.set_nonblocking(true).unwrap();
    let insert = query(&format!("INSERT INTO t VALUES ({})", " ".repeat(60_000)));
    let mut sent = 0usize;
    let mut full = 0;
    while full < 50 && sent < 200 << 20 {
        match std::io::Write::write(&mut raw.socket, &insert) {
            Ok(bytes) => (sent, full) = (sent + bytes, 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                full += 1;
                // the worker has had its turn when it has answered
                let _views = routed.rig.handle.view().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < 64 << 20, "the proxy has taken {sent} bytes that it cannot pass on");
    let other = routed.rig.client().await;
    assert_eq!(text(&other, "SELECT 1").await, "1");
}
