//! Who gets in.

use millrace_base::Secret;
use millrace_proxy::{AuthQuery, ClientLimits, ClientTls, Network, Options, Rule, Rules};
use millrace_testkit::{PASSWORD, TestServer, wait_until};
use tokio_postgres::{NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use millrace_proxy_tests::{LONG, Rig, code, connect, pool_of, text};

async fn with_auth_query() -> Rig {
    let server = TestServer::start().await;
    let admin = server.client().await;
    admin.batch_execute("CREATE ROLE app LOGIN PASSWORD 'first'; CREATE ROLE nologin PASSWORD 'x'").await.unwrap();
    admin.batch_execute("CREATE ROLE mighty SUPERUSER LOGIN PASSWORD 'x'").await.unwrap();
    admin.batch_execute("CREATE DATABASE other").await.unwrap();
    admin.batch_execute("REVOKE CONNECT ON DATABASE other FROM PUBLIC").await.unwrap();
    let query = AuthQuery {
        user: "postgres".to_owned(),
        password: Secret::new(PASSWORD),
        database: "postgres".to_owned(),
        tls: Some(server.client_tls()),
    };
    let options = Options { auth_query: Some(query), secrets: Default::default(), ..pool_of(2) };
    Rig::before(server, options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_those_of_the_server() {
    let rig = with_auth_query().await;
    let app = connect(rig.config().user("app").password("first")).await.unwrap();
    assert_eq!(text(&app, "SELECT session_user").await, "app");
    for (user, password) in [("app", "second"), ("nobody", "x"), ("nologin", "x"), ("mighty", "x"), ("app", "")] {
        let refused = connect(rig.config().user(user).password(password)).await.expect_err("refused");
        assert_eq!(code(&refused), "28P01", "{user}");
    }
    assert_eq!(rig.handle.logins().1, 5);
    rig.server.client().await.batch_execute("ALTER ROLE app PASSWORD 'second'").await.unwrap();
    // the first try finds that what was kept is old
    connect(rig.config().user("app").password("second")).await.err();
    let app = connect(rig.config().user("app").password("second")).await.unwrap();
    assert_eq!(text(&app, "SELECT session_user").await, "app");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_are_closed_to_whom_the_server_closes_them() {
    let rig = with_auth_query().await;
    for (database, expected) in [("other", "42501"), ("absent", "3D000")] {
        let refused = connect(rig.config().user("app").password("first").dbname(database)).await.expect_err("refused");
        assert_eq!(code(&refused), expected, "{database}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_rules_hold() {
    let rule = Rule {
        users: vec!["app".to_owned()],
        networks: vec![Network::parse("127.0.0.0/8").unwrap()],
        ..Rule::default()
    };
    let options = Options {
        clients: ClientLimits { all: 3, user: Some(2), ..ClientLimits::default() },
        rules: Rules(vec![rule, Rule { allow: true, ..Rule::default() }]),
        ..pool_of(2)
    };
    let rig = Rig::start(options).await;
    let kept = [rig.client().await, rig.client().await];
    let refused = connect(&rig.config()).await.expect_err("refused");
    assert_eq!(code(&refused), "53300");
    drop(kept);
    wait_until(LONG, || async { connect(&rig.config()).await.is_ok() }).await;
    let refused = connect(rig.config().user("app")).await.expect_err("refused");
    assert_eq!(code(&refused), "28000");
    let refused = rig.config().options("x").connect(NoTls).await.map(drop).unwrap_err();
    assert_eq!(code(&refused), "08P01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_both_sides() {
    let server = TestServer::start().await;
    let config = server.tls_files().server_config(&[]).unwrap();
    let options = Options { client_tls: ClientTls::Require(config), ..pool_of(1) };
    let rig = Rig::before(server, options).await;
    let refused = rig.config().ssl_mode(SslMode::Disable).connect(NoTls).await.map(drop).unwrap_err();
    assert_eq!(code(&refused), "28000");
    let tls = MakeRustlsConnect::new(rig.server.client_tls().as_ref().clone());
    let (client, connection) = rig.config().ssl_mode(SslMode::Require).connect(tls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends when the client is dropped")]
    tokio::spawn(connection);
    assert_eq!(text(&client, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await, "t");
    let row = client.query_one("SELECT repeat('x', 5000000)", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0).len(), 5_000_000);
    let long = "y".repeat(3_000_000);
    assert_eq!(client.query_one("SELECT length($1::text)", &[&long]).await.unwrap().get::<_, i32>(0), 3_000_000);
}
