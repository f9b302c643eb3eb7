//! Migrations on a real server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use millrace_migrate::{MigrateError, Migration, Options, State, checksum, pending, status, up, up_with, validate};
use millrace_pg::Connection;
use millrace_testkit::{TestServer, wait_until};

fn versioned(version: &str, sql: &str) -> Migration {
    let description = format!("step {version}");
    let script = format!("V{version}__step.sql");
    Migration { version: Some(version.to_owned()), description, script, sql: sql.to_owned() }
}

fn repeatable(name: &str, sql: &str) -> Migration {
    Migration { version: None, description: name.to_owned(), script: format!("R__{name}.sql"), sql: sql.to_owned() }
}

async fn text(client: &Connection, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

#[tokio::test]
async fn scripts_run_once_and_in_order() {
    let server = TestServer::start().await;
    let mut client = server.create_database("app").await;
    let mut scripts = vec![
        repeatable("view", "CREATE OR REPLACE VIEW v AS SELECT a FROM t"),
        versioned("10", "INSERT INTO t SELECT a + 1 FROM t"),
        versioned("2", "-- first\nCREATE TABLE t (a int); INSERT INTO t VALUES (1);"),
    ];
    let first = up(client.client_mut(), &scripts, "tester").await.unwrap();
    assert_eq!(first.applied, ["V2__step.sql", "V10__step.sql", "R__view.sql"]);
    assert_eq!(text(&client, "SELECT string_agg(a::text, ',' ORDER BY a) FROM v").await, "1,2");
    let again = up(client.client_mut(), &scripts, "tester").await.unwrap();
    assert!(again.applied.is_empty());

    scripts[0].sql = "CREATE OR REPLACE VIEW v AS SELECT a FROM t WHERE a > 1".to_owned();
    assert_eq!(pending(&client, &scripts).await.unwrap(), ["R__view.sql"]);
    let changed = up(client.client_mut(), &scripts, "tester").await.unwrap();
    assert_eq!(changed.applied, ["R__view.sql"]);
    assert_eq!(text(&client, "SELECT string_agg(a::text, ',') FROM v").await, "2");

    let history = text(
        &client,
        "SELECT string_agg(concat_ws('|', installed_rank, version, description, type, script, checksum, installed_by,
             installed_on IS NOT NULL, execution_time >= 0, success), E'\\n' ORDER BY installed_rank) FROM flyway_schema_history",
    )
    .await;
    let expected = [
        format!("1|2|step 2|SQL|V2__step.sql|{}|tester|t|t|t", checksum(&scripts[2].sql)),
        format!("2|10|step 10|SQL|V10__step.sql|{}|tester|t|t|t", checksum(&scripts[1].sql)),
        format!("3|view|SQL|R__view.sql|{}|tester|t|t|t", checksum("CREATE OR REPLACE VIEW v AS SELECT a FROM t")),
        format!("4|view|SQL|R__view.sql|{}|tester|t|t|t", checksum(&scripts[0].sql)),
    ];
    assert_eq!(history, expected.join("\n"));
    let layout = text(
        &client,
        "SELECT string_agg(column_name || ' ' || udt_name, ',' ORDER BY ordinal_position)
         FROM information_schema.columns WHERE table_name = 'flyway_schema_history' AND table_schema = 'public'",
    )
    .await;
    assert_eq!(
        layout,
        "installed_rank int4,version varchar,description varchar,type varchar,script varchar,checksum int4,\
         installed_by varchar,installed_on timestamp,execution_time int4,success bool"
    );
}

#[tokio::test]
async fn a_changed_script_is_named_and_nothing_runs() {
    let server = TestServer::start().await;
    let mut client = server.create_database("app").await;
    let before = [versioned("1", "CREATE TABLE t (a int)")];
    up(client.client_mut(), &before, "tester").await.unwrap();
    let after = [versioned("1", "CREATE TABLE t (a bigint)"), versioned("2", "CREATE TABLE u ()")];
    let error = up(client.client_mut(), &after, "tester").await.unwrap_err();
    assert!(error.to_string().starts_with("V1__step.sql was changed after it was applied (checksum "), "{error}");
    assert!(error.hint().unwrap().contains("new migration"));
    assert!(validate(&client, &after).await.is_err());
    let entries = status(&client, &after).await.unwrap();
    assert!(matches!(entries[0].state, State::Changed { .. }));
    assert_eq!(entries[1].state, State::Pending);
    assert_eq!(text(&client, "SELECT to_regclass('u')::text").await, "");
    // ends of lines are no change
    let ends = [versioned("1", "CREATE TABLE t (a int)\r\n")];
    validate(&client, &ends).await.unwrap();
}

#[tokio::test]
async fn a_failed_script_leaves_nothing_and_says_where() {
    let server = TestServer::start().await;
    let mut client = server.create_database("app").await;
    let cases = [
        // the server points at it
        ("CREATE TABLE kept (a int);\n\nSELECT 1,\n  nothing FROM kept;", 4, "column \"nothing\" does not exist"),
        // the server names no place: the statement's first line
        ("CREATE TABLE kept (a int);\n-- half\n\nINSERT INTO kept\nSELECT 1/0;", 4, "division by zero"),
        ("SELECT 'ä';\nSELEC 2;", 2, "syntax error at or near \"SELEC\""),
    ];
    for (sql, line, message) in cases {
        let scripts = [versioned("1", "CREATE TABLE IF NOT EXISTS first ()"), versioned("2", sql)];
        let error = up(client.client_mut(), &scripts, "tester").await.unwrap_err();
        assert_eq!(error.to_string(), format!("V2__step.sql line {line} failed"));
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), message);
        assert_eq!(text(&client, "SELECT to_regclass('kept')::text").await, "");
        assert_eq!(text(&client, "SELECT string_agg(version, ',') FROM flyway_schema_history").await, "1");
    }
    // a deferred constraint fails at the end of the transaction
    let deferred = "CREATE TABLE p (a int PRIMARY KEY);
        CREATE TABLE c (a int REFERENCES p DEFERRABLE INITIALLY DEFERRED); INSERT INTO c VALUES (1)";
    let scripts = [versioned("1", "CREATE TABLE IF NOT EXISTS first ()"), versioned("2", deferred)];
    let error = up(client.client_mut(), &scripts, "tester").await.unwrap_err();
    assert_eq!(error.to_string(), "V2__step.sql failed");
    assert_eq!(text(&client, "SELECT to_regclass('p')::text").await, "");
    // and the lock is free again
    let good = [versioned("1", "CREATE TABLE IF NOT EXISTS first ()"), versioned("2", "CREATE TABLE kept ()")];
    assert_eq!(up(client.client_mut(), &good, "tester").await.unwrap().applied, ["V2__step.sql"]);
}

#[tokio::test]
async fn transaction_control_is_refused_before_anything_runs() {
    let server = TestServer::start().await;
    let mut client = server.create_database("app").await;
    for (sql, message) in [
        ("CREATE TABLE u ();\nCOMMIT;", "V2__step.sql line 2: COMMIT cannot be part of a migration"),
        (
            "CREATE TABLE u (a int);\nCOPY u\n FROM STDIN;",
            "V2__step.sql line 2: COPY from or to the client cannot be part of a migration",
        ),
    ] {
        let scripts = [versioned("1", "CREATE TABLE t ()"), versioned("2", sql)];
        let error = up(client.client_mut(), &scripts, "tester").await.unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(text(&client, "SELECT to_regclass('t')::text").await, "");
    }
}

#[tokio::test]
async fn settings_of_a_script_end_with_it() {
    let server = TestServer::start().await;
    let mut client = server.create_database("app").await;
    let scripts = [
        versioned("1", "CREATE SCHEMA s; SET search_path = s; CREATE TABLE t (); SET ROLE pg_monitor"),
        versioned("2", "CREATE TABLE t ()"),
    ];
    up(client.client_mut(), &scripts, "tester").await.unwrap();
    let places =
        text(&client, "SELECT string_agg(schemaname, ',' ORDER BY 1) FROM pg_tables WHERE tablename = 't'").await;
    assert_eq!(places, "public,s");
    assert_eq!(text(&client, "SELECT current_user::text").await, "postgres");
}

#[tokio::test]
async fn two_runners_do_not_meet() {
    let server = TestServer::start().await;
    let mut one = server.create_database("app").await;
    let mut two = server.client_to("app").await;
    let scripts: Vec<Migration> =
        (1..=5).map(|n| versioned(&n.to_string(), &format!("CREATE TABLE t{n} (); SELECT pg_sleep(0.05)"))).collect();
    let (a, b) = tokio::join!(up(one.client_mut(), &scripts, "one"), up(two.client_mut(), &scripts, "two"));
    assert_eq!(a.unwrap().applied.len() + b.unwrap().applied.len(), 5);
    assert_eq!(text(&one, "SELECT count(*)::text FROM flyway_schema_history").await, "5");

    // a runner that does not finish: the other says who it is
    let pid = text(&two, "SELECT pg_backend_pid()::text").await;
    two.execute("SELECT pg_advisory_lock(x'6d696c6c72616365'::bigint)", &[]).await.unwrap();
    let impatient = Options { runner_wait: Duration::from_millis(200), ..Options::default() };
    let error = up_with(one.client_mut(), &scripts, "one", &impatient).await.unwrap_err();
    assert!(matches!(error, MigrateError::Locked { holder: Some(holder), .. } if holder.to_string() == pid), "{error}");
}

#[tokio::test]
async fn a_script_gives_way_and_starts_anew() {
    let server = TestServer::start().await;
    let mut client = server.create_database("app").await;
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();
    let mut reader = server.client_to("app").await;
    let open = reader.client_mut().transaction().await.unwrap();
    open.batch_execute("SELECT * FROM t").await.unwrap();

    let scripts = [versioned("1", "CREATE TABLE u (); ALTER TABLE t ADD COLUMN b int")];
    let hasty = Options { lock_timeout: Duration::from_millis(50), lock_tries: 2, ..Options::default() };
    let error = up_with(client.client_mut(), &scripts, "tester", &hasty).await.unwrap_err();
    assert!(error.hint().unwrap().contains("others hold locks"), "{error}");

    let patient = Options { lock_timeout: Duration::from_millis(100), lock_tries: 50, ..Options::default() };
    let watcher = server.client_to("app").await;
    let release = async {
        wait_until(Duration::from_secs(20), || async {
            let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')";
            watcher.query_one(waiting, &[]).await.unwrap().get(0)
        })
        .await;
        open.rollback().await.unwrap();
    };
    let (done, ()) = tokio::join!(up_with(client.client_mut(), &scripts, "tester", &patient), release);
    assert_eq!(done.unwrap().applied, ["V1__step.sql"]);
}

#[tokio::test]
async fn an_empty_database_has_everything_pending() {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let scripts = [versioned("1", "SELECT 1")];
    assert_eq!(pending(&client, &scripts).await.unwrap(), ["V1__step.sql"]);
    assert_eq!(text(&client, "SELECT to_regclass('flyway_schema_history')::text").await, "");
}
