//! The proxy is told to be another way while clients work: nobody is dropped, and new words hold for what comes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_base::Secret;
use millrace_proxy::{ClientTls, Network, Options, PoolMode, Read, Rule, Rules};
use millrace_testkit::{TestServer, wait_until};
use tokio_postgres::{Client, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use millrace_proxy_tests::{LONG, Raw, Rig, code, connect, pool_of, query, text};

async fn servers(rig: &Rig) -> usize {
    rig.handle.view().await.iter().map(|view| view.servers.len()).sum()
}

async fn waiting(rig: &Rig) -> usize {
    rig.handle.view().await.iter().flat_map(|view| &view.pools).map(|pool| pool.waiting).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_shrink_as_transactions_end_and_grow_at_once() {
    for workers in [1, 2] {
        let rig = Rig::start(Options { workers, ..pool_of(4) }).await;
        let clients = [rig.client().await, rig.client().await, rig.client().await, rig.client().await];
        for client in &clients {
            client.batch_execute("BEGIN; CREATE TEMP TABLE mine (i int) ON COMMIT DROP").await.unwrap();
        }
        assert_eq!(servers(&rig).await, 4);
        let reloaded = rig.reload(Options { workers, ..pool_of(1) });
        assert_eq!((reloaded.changed, reloaded.waits), (vec!["pool_size: 4 → 1".to_owned()], vec![]));
        for client in &clients {
            // the transaction that ran goes on to its end
            assert_eq!(text(client, "SELECT count(*) FROM mine").await, "0");
            client.batch_execute("COMMIT").await.unwrap();
        }
        wait_until(LONG, || async { servers(&rig).await == 1 }).await;
        for client in &clients {
            assert_eq!(text(client, "SELECT 1").await, "1");
        }
        assert_eq!(servers(&rig).await, 1);
        rig.reload(Options { workers, ..pool_of(2) });
        clients[0].batch_execute("BEGIN").await.unwrap();
        clients[1].batch_execute("BEGIN").await.unwrap();
        assert_eq!(servers(&rig).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_wait_holds_for_those_who_wait() {
    let rig = Rig::start(pool_of(1)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    one.batch_execute("BEGIN").await.unwrap();
    let reload = async {
        wait_until(LONG, || async { waiting(&rig).await == 1 }).await;
        let mut options = pool_of(1);
        options.pool.wait = Duration::from_millis(100);
        rig.reload(options);
    };
    let (refused, ()) = tokio::join!(other.simple_query("SELECT 1"), reload);
    assert_eq!(code(&refused.unwrap_err()), "53300");
    one.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_is_a_clients_for_its_life() {
    let rig = Rig::start(pool_of(2)).await;
    let in_use =
        async || rig.handle.view().await.iter().flat_map(|v| &v.servers).filter(|s| s.client.is_some()).count();
    let old = rig.client().await;
    assert_eq!(old.query_one("SELECT $1::int", &[&1]).await.unwrap().get::<_, i32>(0), 1);
    let mut options = pool_of(2);
    options.pool.mode = PoolMode::Session;
    rig.reload(options);
    let new = rig.client().await;
    text(&new, "SET search_path = nowhere").await;
    text(&new, "SELECT 1").await;
    text(&old, "SELECT 1").await;
    // the new client keeps its connection, the old one does not: not for long, as its driver closes statements late
    wait_until(LONG, || async { in_use().await == 1 }).await;
    assert_eq!(old.query_one("SELECT $1::int", &[&2]).await.unwrap().get::<_, i32>(0), 2);
    rig.reload(pool_of(2));
    assert_eq!(text(&new, "SHOW search_path").await, "nowhere");
    wait_until(LONG, || async { in_use().await == 1 }).await;
    drop(new);
    wait_until(LONG, || async { in_use().await == 0 }).await;
    // what the session left is gone
    for _ in 0..2 {
        assert_ne!(text(&old, "SHOW search_path").await, "nowhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_rules_hold_for_those_who_come() {
    let rig = Rig::start(pool_of(2)).await;
    let (one, other) = (rig.client().await, rig.client().await);
    let mut options = pool_of(2);
    options.clients.user = Some(2);
    let reloaded = rig.reload(options.clone());
    assert_eq!(reloaded.changed, ["max_user_connections: none → 2"]);
    // who was there before is counted
    assert_eq!(code(&connect(&rig.config()).await.expect_err("refused")), "53300");
    options.clients.user = None;
    options.rules =
        Rules(vec![Rule { networks: vec![Network::parse("10.0.0.0/8").unwrap()], allow: true, ..Rule::default() }]);
    assert_eq!(rig.reload(options).changed, ["max_user_connections: 2 → none", "allow: changed"]);
    assert_eq!(code(&connect(&rig.config()).await.expect_err("refused")), "28000");
    assert_eq!((text(&one, "SELECT 1").await, text(&other, "SELECT 1").await), ("1".to_owned(), "1".to_owned()));
    assert_eq!(rig.reload(pool_of(2)).changed, ["allow: changed"]);
    connect(&rig.config()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_change_under_clients_that_stay() {
    let server = TestServer::start().await;
    let admin = server.client().await;
    admin.batch_execute("CREATE ROLE app LOGIN PASSWORD 'first'").await.unwrap();
    let with = |password: &str| {
        let mut options = pool_of(2);
        options.secrets.insert("app".to_owned(), Secret::new(password));
        options
    };
    let rig = Rig::before(server, with("first")).await;
    let app = connect(rig.config().user("app").password("first")).await.unwrap();
    text(&app, "SELECT 1").await;
    admin.batch_execute("ALTER ROLE app PASSWORD 'second'").await.unwrap();
    let reloaded = rig.reload(with("second"));
    assert_eq!(reloaded.changed, ["password of app: changed"]);
    let refused = connect(rig.config().user("app").password("first")).await.expect_err("refused");
    assert_eq!(code(&refused), "28P01");
    connect(rig.config().user("app").password("second")).await.unwrap();
    // a new connection to the server is opened with the new one
    rig.handle.reconnect(None);
    assert_eq!(text(&app, "SELECT 2").await, "2");
    assert_eq!(rig.reload(pool_of(2)).changed, ["user app: removed"]);
    let refused = connect(rig.config().user("app").password("second")).await.expect_err("refused");
    assert_eq!(code(&refused), "28P01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_those_who_come() {
    let (server, other) = (TestServer::start().await, TestServer::start().await);
    let with = |server: &TestServer| {
        let files = server.tls_files();
        let certificate = std::fs::read(files.server_cert()).unwrap();
        Options { client_tls: ClientTls::Require(files.server_config(&[]).unwrap()), certificate, ..pool_of(2) }
    };
    let (before, after) = (with(&server), with(&other));
    let rig = Rig::before(server, before).await;
    let trusting = async |server: &TestServer| -> Result<Client, tokio_postgres::Error> {
        let tls = MakeRustlsConnect::new(server.client_tls().as_ref().clone());
        let (client, connection) = rig.config().ssl_mode(SslMode::Require).connect(tls).await?;
        #[expect(clippy::disallowed_methods, reason = "it ends when the client is dropped")]
        tokio::spawn(connection);
        Ok(client)
    };
    let client = trusting(&rig.server).await.unwrap();
    assert_eq!(rig.reload(after).changed, ["certificate: changed"]);
    assert!(trusting(&rig.server).await.is_err());
    let new = trusting(&other).await.unwrap();
    assert_eq!((text(&client, "SELECT 1").await, text(&new, "SELECT 1").await), ("1".to_owned(), "1".to_owned()));
}

/// What the console says to a command: notices, and the code of an error.
fn said(console: &mut Raw, command: &str) -> (Vec<String>, Option<String>) {
    console.send(&query(command));
    let (mut notices, mut error) = (Vec::new(), None);
    loop {
        let (tag, body) = console.message();
        let field = |wanted: u8| {
            let mut fields = body.split(|b| *b == 0);
            let found = fields.find(|field| field.first() == Some(&wanted));
            found.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
        };
        match tag {
            b'N' => notices.push(field(b'M')),
            b'E' => error = Some(format!("{} {} ({})", field(b'C'), field(b'M'), field(b'H'))),
            b'Z' => return (notices, error),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_reloads_and_says_what_has_changed() {
    let rig = Rig::start(Options { admins: ["postgres".to_owned()].into(), ..pool_of(2) }).await;
    let mut console = Raw::login_to(rig.address, "pgbouncer");
    let (notices, error) = said(&mut console, "RELOAD");
    assert!(notices.is_empty() && error.unwrap().starts_with("F0000 this proxy has no configuration"));
    let files: Arc<Mutex<Result<Options, String>>> = Arc::new(Mutex::new(Ok(rig.complete(pool_of(5)))));
    let read = files.clone();
    rig.handle.reread_with(move || {
        let options = read.lock().unwrap().clone();
        Box::pin(async move { options.map(|options| Read { options, waits: vec!["port: 1 → 2".to_owned()] }) })
    });
    let (notices, error) = said(&mut console, "RELOAD");
    assert_eq!(error, None);
    assert_eq!(notices, ["pool_size: 2 → 5", "administrators: changed", "from the next start: port: 1 → 2"]);
    *files.lock().unwrap() = Err("millrace.toml:3: pool_size is no number\n  hint: write one".to_owned());
    let (notices, error) = said(&mut console, "RELOAD");
    assert!(notices.is_empty());
    assert_eq!(error.as_deref(), Some("F0000 millrace.toml:3: pool_size is no number (write one)"));
    assert_eq!(rig.handle.options().pool.size, 5);
    assert_eq!(text(&rig.client().await, "SELECT 1").await, "1");
}
