//! Who is let in, and what those hear who are not.

use std::time::Duration;

use millrace_base::{
    Clock, Secret, SystemClock,
    tls::{TlsFiles, default_hosts},
};
use millrace_pg::{ConnectParams, PgError, connect, roles};
use millrace_testkit::{TestServer, free_port, wait_until};

const SOON: Duration = Duration::from_secs(10);

async fn refused(params: &ConnectParams) -> PgError {
    match connect(params, SOON).await {
        Ok(_) => panic!("it was let in"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn refusals_say_why_and_what_to_do() {
    let server = TestServer::start().await;
    let good = server.params();

    let error = refused(&good.as_user("postgres", Secret::new("guess"))).await;
    assert_eq!(error.sqlstate(), Some("28P01"));
    assert_eq!(error.to_string(), "password authentication failed for user \"postgres\"");
    assert_eq!(error.hint().unwrap(), "the password of role \"postgres\" is not the one the server knows");
    assert!(!error.is_transient());

    let error = refused(&good.to_database("nowhere")).await;
    assert_eq!(error.sqlstate(), Some("3D000"));

    let plain = ConnectParams { tls: None, ..good.clone() };
    let error = refused(&plain).await;
    assert_eq!(error.sqlstate(), Some("28000"), "{error}");

    let nobody = ConnectParams { port: free_port(), ..good.clone() };
    let error = refused(&nobody).await;
    assert!(matches!(error, PgError::Unreachable { .. }) && error.is_transient(), "{error:?}");
    assert_eq!(error.to_string(), format!("cannot reach a server at 127.0.0.1:{}", nobody.port));

    let others = TlsFiles::in_folder(server.folder().join("others"));
    others.generate(&default_hosts(&[]), SystemClock::new().wall()).unwrap();
    let stranger = ConnectParams { tls: Some(others.client_config().unwrap()), ..good };
    let error = refused(&stranger).await;
    assert!(matches!(error, PgError::Tls { .. }) && !error.is_transient(), "{error:?}");
    assert!(error.hint().unwrap().contains("certificate"));
}

#[tokio::test]
async fn another_host_name_than_the_certificates_is_refused() {
    let server = TestServer::start().await;
    let named = TlsFiles::in_folder(server.folder().join("named"));
    named.generate(&["db.example.com".to_owned()], SystemClock::new().wall()).unwrap();
    let mut spec = server.spec().clone();
    spec.tls = named.clone();
    spec.configure(None).unwrap();
    server.client().await.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let params = ConnectParams { tls: Some(named.client_config().unwrap()), ..server.params() };
    wait_until(SOON, || async {
        let error = refused(&params).await;
        // before the reload the old certificate is shown, which this client does not trust
        matches!(&error, PgError::Tls { reason, .. } if reason.contains("NotValidForName") || reason.contains("not valid for name"))
    })
    .await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = TestServer::start().await;
    let params = ConnectParams { port: silent.local_addr().unwrap().port(), ..server.params() };
    let error = connect(&params, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, PgError::Timeout { .. }), "{error:?}");
    assert!(error.to_string().ends_with("did not answer within 0.2 s"), "{error}");
}

#[tokio::test]
async fn statements_are_cancelled_and_sessions_end_in_order() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let sleeping = client.batch_execute("SELECT pg_sleep(600)");
    let cancelling = async {
        let other = server.client().await;
        wait_until(SOON, || async {
            let sessions = millrace_pg::catalog::sessions(&other).await.unwrap();
            sessions.iter().any(|session| session.wait_event.as_deref() == Some("PgSleep"))
        })
        .await;
        client.cancel().await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleeping, cancelling);
    assert_eq!(slept.unwrap_err().code().unwrap().code(), "57014");

    drop(client);
    let other = server.client().await;
    wait_until(SOON, || async { millrace_pg::catalog::sessions(&other).await.unwrap().is_empty() }).await;
    assert!(!server.log().contains("Connection reset by peer"), "{}", server.log());
}

#[tokio::test]
async fn a_lost_server_is_told_as_such() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    server.kill().await;
    // the session's own process may live for a moment longer than its postmaster
    let error = loop {
        if let Err(error) = client.batch_execute("SELECT 1").await {
            break PgError::from(error);
        }
    };
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn roles_are_made_once_and_kept_up_to_date() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for (password, attributes) in [("first one", "NOREPLICATION"), ("it's \"new\"", "REPLICATION")] {
        let secret = Secret::new(password);
        roles::ensure_login_role(&*client, "the role", attributes, &secret).await.unwrap();
        let own = connect(&server.params().as_user("the role", secret), SOON).await.unwrap();
        let row = own.query_one("SELECT rolreplication FROM pg_roles WHERE rolname = current_user", &[]).await.unwrap();
        assert_eq!(row.get::<_, bool>(0), attributes == "REPLICATION");
    }
    assert!(!server.log().contains("it's"), "no password in the log");
}
