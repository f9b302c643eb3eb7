//! Rust's drivers, sqlx and tokio-postgres, as `others` does with those of other languages: what comes of each step on the
//! server itself, and through a proxy with four connections, is the same.

use std::time::Duration;

use futures::{SinkExt, StreamExt, TryStreamExt, future::join_all, pin_mut};
use millrace_proxy::PoolMode;
use millrace_proxy_tests::{LONG, Rig, code, connect, pool_of, text};
use millrace_testkit::{PASSWORD, TestServer, wait_until};
use serde_json::{Map, Value, json};
use sqlx::{
    AssertSqlSafe, Connection, Either, Executor, PgConnection, PgPool, Row, Statement,
    postgres::{
        PgAdvisoryLock, PgConnectOptions, PgListener, PgPoolCopyExt, PgPoolOptions, PgRow, PgSslMode, types::PgInterval,
    },
};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_postgres::{CancelToken, Client, NoTls, types::ToSql};

use crate::others::same;

type Outcomes = Map<String, Value>;

fn note(outcomes: &mut Outcomes, what: &str, outcome: impl Into<Value>) {
    let before = outcomes.insert(what.to_owned(), outcome.into());
    assert!(before.is_none(), "noted twice: {what}");
}

/// Lets drivers in that were built without TLS.
async fn without_tls() -> TestServer {
    let server = TestServer::start().await;
    let hba = server.data_dir().join("pg_hba.conf");
    let text = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, text.replace("hostssl", "host")).unwrap();
    server.client().await.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.port()).user("postgres").password(PASSWORD);
    wait_until(LONG, || async { connect(&config).await.is_ok() }).await;
    server
}

async fn compare(outcomes: impl AsyncFn(u16) -> Outcomes, steps: usize) {
    let server = without_tls().await;
    let direct = outcomes(server.port()).await;
    assert!(direct.len() >= steps, "{} steps", direct.len());
    let rig = Rig::before(server, pool_of(4)).await;
    same("transactions", &direct, &outcomes(rig.address.port()).await);
    let mut options = pool_of(30);
    options.pool.mode = PoolMode::Session;
    let rig = Rig::before(rig.server, options).await;
    same("sessions", &direct, &outcomes(rig.address.port()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_sees_no_difference() {
    compare(with_sqlx, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_postgres_sees_no_difference() {
    compare(with_tokio_postgres, 20).await;
}

fn state(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|e| e.code()).map_or_else(|| error.to_string(), |code| code.into_owned())
}

fn failed<T>(result: Result<T, sqlx::Error>) -> String {
    result.err().map_or_else(|| "no error".to_owned(), |error| state(&error))
}

async fn one<'e, T>(executor: impl sqlx::PgExecutor<'e>, query: &'static str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(query).fetch_one(executor).await.unwrap_or_else(|e| panic!("{query}: {e}"))
}

async fn with_sqlx(port: u16) -> Outcomes {
    let connection = PgConnectOptions::new()
        .host("127.0.0.1")
        .port(port)
        .username("postgres")
        .password(PASSWORD)
        .database("postgres")
        .application_name("sqlx's")
        .ssl_mode(PgSslMode::Disable);
    let pool = PgPoolOptions::new().max_connections(10).connect_with(connection.clone()).await.unwrap();
    let mut outcomes = Map::new();
    let o = &mut outcomes;
    sqlx_statements(o, &pool).await;
    sqlx_transactions(o, &pool).await;
    sqlx_copies(o, &pool).await;
    sqlx_sessions(o, &pool, &connection).await;
    pool.close().await;
    outcomes
}

async fn sqlx_statements(o: &mut Outcomes, pool: &PgPool) {
    let make = "DROP TABLE IF EXISTS items; CREATE TABLE items (id int PRIMARY KEY, name text, data jsonb, key uuid)";
    pool.execute(sqlx::raw_sql(make)).await.unwrap();
    let inserts = (0..100).map(|id| {
        let row = sqlx::query("INSERT INTO items VALUES ($1, $2, $3, $4)").bind(id).bind(format!("item {id}"));
        row.bind(sqlx::types::Json(json!({"n": id}))).bind(sqlx::types::Uuid::from_u128(7)).execute(pool)
    });
    let affected: u64 = join_all(inserts).await.into_iter().map(|done| done.unwrap().rows_affected()).sum();
    note(o, "a hundred inserts at once", affected);
    let reads = (0..100).map(async |id: i32| {
        let row = sqlx::query("SELECT id, name, data, key FROM items WHERE id = $1").bind(id);
        let row = row.fetch_one(pool).await.unwrap();
        let data = row.get::<sqlx::types::Json<Value>, _>(2).0;
        json!([row.get::<i32, _>(0), row.get::<String, _>(1), data, row.get::<sqlx::types::Uuid, _>(3).to_string()])
    });
    note(o, "a hundred reads at once", join_all(reads).await);
    let mut several = Vec::new();
    let mut stream = pool.fetch_many(sqlx::raw_sql("SELECT 1; UPDATE items SET name = 'x' WHERE id < 3; SELECT 2, 3"));
    while let Some(step) = stream.try_next().await.unwrap() {
        several.push(match step {
            Either::Left(done) => json!(done.rows_affected()),
            Either::Right(row) => json!(PgRow::len(&row)),
        });
    }
    drop(stream);
    note(o, "several statements", several);
    note(o, "no row", one::<Option<i32>>(pool, "SELECT NULL::int").await);
    note(o, "an error", failed(sqlx::query("SELECT 1 / $1::int").bind(0).execute(pool).await));
    note(o, "a wrong statement", failed(sqlx::query("SELECT nonsense").execute(pool).await));
    let twice = sqlx::query("INSERT INTO items (id) VALUES (1)").execute(pool).await.unwrap_err();
    let twice = twice.as_database_error().unwrap();
    note(o, "a constraint", json!([twice.is_unique_violation(), twice.constraint(), twice.table(), twice.message()]));
    // streams that are read to the end, and one that is dropped in between
    let mut sum = 0i64;
    let mut stream = sqlx::query_scalar::<_, i64>("SELECT generate_series(1, 20000)::int8").fetch(pool);
    while let Some(n) = stream.try_next().await.unwrap() {
        sum += n;
    }
    drop(stream);
    note(o, "a stream", sum);
    let mut held = pool.acquire().await.unwrap();
    let mut stream = sqlx::query_scalar::<_, i64>("SELECT generate_series(1, 200000)::int8").fetch(&mut *held);
    note(o, "the first of a stream", stream.next().await.unwrap().unwrap());
    drop(stream);
    note(o, "after a stream that was dropped", one::<i32>(&mut *held, "SELECT 5").await);
    let text = sqlx::SqlStr::from_static("SELECT id, name FROM items WHERE id = $1");
    let prepared = (&mut *held).prepare(text).await.unwrap();
    note(o, "prepared", json!([prepared.columns().len(), format!("{:?}", prepared.parameters())]));
    held.clear_cached_statements().await.unwrap();
    note(o, "after its statements were closed", one::<i32>(&mut *held, "SELECT 5").await);
    let mut many = 0;
    for n in 0..250 {
        let query = AssertSqlSafe(format!("SELECT $1::int + {n}"));
        many += sqlx::query_scalar::<_, i32>(query).bind(n).fetch_one(&mut *held).await.unwrap();
    }
    note(o, "more statements than are kept", many);
    let unprepared = sqlx::query("SELECT $1::text").bind("once").persistent(false).fetch_one(&mut *held).await.unwrap();
    note(o, "a statement that is not kept", unprepared.get::<String, _>(0));
    let interval = PgInterval { months: 1, days: 2, microseconds: 3 };
    let row =
        sqlx::query("SELECT $1::interval::text, $2::int[], $3::bytea, $4::float8, $5::jsonb, ARRAY['a', NULL]::text[]");
    let row = row.bind(interval).bind(vec![1, 2, 3]).bind(vec![0u8, 255]).bind(f64::MAX).bind(json!({"a": [1]}));
    let row = row.fetch_one(&mut *held).await.unwrap();
    let types = json!([
        row.get::<String, _>(0),
        row.get::<Vec<i32>, _>(1),
        row.get::<Vec<u8>, _>(2),
        row.get::<f64, _>(3),
        row.get::<Value, _>(4),
        row.get::<Vec<Option<String>>, _>(5),
    ]);
    note(o, "types", types);
    let large = "x".repeat(5_000_000);
    let row = sqlx::query_scalar::<_, String>("SELECT $1::text").bind(&large).fetch_one(&mut *held).await.unwrap();
    note(o, "a large row", row == large);
}

async fn sqlx_transactions(o: &mut Outcomes, pool: &PgPool) {
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("UPDATE items SET name = 'outer' WHERE id = 5").execute(&mut *transaction).await.unwrap();
    let mut nested = transaction.begin().await.unwrap();
    note(
        o,
        "an error in a nested one",
        failed(sqlx::query("INSERT INTO items VALUES (5)").execute(&mut *nested).await),
    );
    note(o, "what follows in it", failed(sqlx::query("SELECT 1").execute(&mut *nested).await));
    nested.rollback().await.unwrap();
    note(o, "after it", one::<String>(&mut *transaction, "SELECT name FROM items WHERE id = 5").await);
    note(o, "to another", one::<String>(pool, "SELECT name FROM items WHERE id = 5").await);
    transaction.commit().await.unwrap();
    note(o, "committed", one::<String>(pool, "SELECT name FROM items WHERE id = 5").await);
    let mut dropped = pool.begin().await.unwrap();
    sqlx::query("UPDATE items SET name = 'dropped' WHERE id = 5").execute(&mut *dropped).await.unwrap();
    drop(dropped);
    note(o, "one that was dropped", one::<String>(pool, "SELECT name FROM items WHERE id = 5 FOR UPDATE").await);
    let mut serial = pool.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await.unwrap();
    note(o, "isolation", one::<String>(&mut *serial, "SHOW transaction_isolation").await);
    serial.rollback().await.unwrap();
    let work = (0..60).map(async |n: i32| {
        let mut transaction = pool.begin().await.unwrap();
        let add = sqlx::query("UPDATE items SET data = jsonb_build_object('n', (data->>'n')::int + 1) WHERE id = $1");
        add.bind(n % 3).execute(&mut *transaction).await.unwrap();
        if n % 4 == 0 { transaction.rollback().await.unwrap() } else { transaction.commit().await.unwrap() }
    });
    join_all(work).await;
    let counted = one::<i64>(pool, "SELECT sum((data->>'n')::int)::int8 FROM items WHERE id < 3").await;
    note(o, "sixty transactions on three rows", counted);
}

async fn sqlx_copies(o: &mut Outcomes, pool: &PgPool) {
    let mut sink = pool.copy_in_raw("COPY items (id, name) FROM STDIN").await.unwrap();
    for n in 1_000..4_000 {
        sink.send(format!("{n}\tcopied {}\n", "z".repeat(40)).into_bytes()).await.unwrap();
    }
    note(o, "copied in", sink.finish().await.unwrap());
    let mut out =
        pool.copy_out_raw("COPY (SELECT id, name FROM items WHERE id >= 1000 ORDER BY id) TO STDOUT").await.unwrap();
    let mut bytes = 0;
    while let Some(piece) = out.try_next().await.unwrap() {
        bytes += piece.len();
    }
    drop(out);
    note(o, "copied out", bytes);
    let mut sink = pool.copy_in_raw("COPY items (id, name) FROM STDIN").await.unwrap();
    sink.send(&b"90000\tx\n"[..]).await.unwrap();
    sink.abort("no more").await.unwrap();
    let mut sink = pool.copy_in_raw("COPY items (id, name) FROM STDIN").await.unwrap();
    sink.send(&b"1\tx\n"[..]).await.unwrap();
    note(o, "a copy that fails", failed(sink.finish().await));
    note(o, "after copies", one::<i64>(pool, "SELECT count(*) FROM items").await);
}

async fn sqlx_sessions(o: &mut Outcomes, pool: &PgPool, options: &PgConnectOptions) {
    let mut listener = PgListener::connect_with(pool).await.unwrap();
    listener.listen_all(["news", "other"]).await.unwrap();
    for (channel, payload) in [("news", "one"), ("other", "two"), ("news", "three")] {
        sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(payload).execute(pool).await.unwrap();
    }
    let mut heard = Vec::new();
    for _ in 0..3 {
        let told = tokio::time::timeout(LONG, listener.recv()).await.unwrap().unwrap();
        heard.push(json!([told.channel(), told.payload()]));
    }
    note(o, "notifications", heard);
    listener.unlisten_all().await.unwrap();
    drop(listener);
    let mut held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let [first, second] = &mut held;
    let lock = PgAdvisoryLock::new("a name");
    let guard = lock.try_acquire(&mut **first).await.unwrap();
    note(o, "an advisory lock", guard.is_left());
    note(o, "of another's", lock.try_acquire(&mut **second).await.unwrap().is_left());
    drop(guard);
    // sqlx gives it back with the next statement
    note(o, "the statement that gives it back", one::<i32>(&mut **first, "SELECT 1").await);
    note(o, "given back", lock.try_acquire(&mut **second).await.unwrap().is_left());
    drop(held);
    let own = options.clone().options([("work_mem", "6MB"), ("my.own", "mine")]).extra_float_digits(None);
    let mut own = PgConnection::connect_with(&own).await.unwrap();
    sqlx::raw_sql("SET work_mem = '7MB'; RESET work_mem").execute(&mut own).await.unwrap();
    let mut shown = Vec::new();
    for query in ["SHOW work_mem", "SHOW my.own", "SHOW application_name", "SHOW timezone"] {
        shown.push(one::<String>(&mut own, query).await);
    }
    note(o, "settings", shown);
    own.ping().await.unwrap();
    own.close().await.unwrap();
    let after = PgPoolOptions::new().max_connections(3).after_connect(|connection, _| {
        Box::pin(async move { connection.execute("SET search_path = pg_catalog").await.map(drop) })
    });
    let after = after.connect_with(options.clone()).await.unwrap();
    let paths = (0..20).map(|_| one::<String>(&after, "SHOW search_path"));
    note(o, "after connecting", join_all(paths).await);
    after.close().await;
    // a query that is given up: the driver drops what is left of it
    let given_up = tokio::time::timeout(Duration::from_millis(50), pool.execute("SELECT pg_sleep(1.5)")).await;
    note(o, "given up", given_up.is_err());
    note(o, "after it was given up", one::<i32>(pool, "SELECT 6").await);
}

async fn with_tokio_postgres(port: u16) -> Outcomes {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres");
    let clients = join_all((0..6).map(|_| connect(&config))).await;
    let mut clients: Vec<Client> = clients.into_iter().map(Result::unwrap).collect();
    let mut outcomes = Map::new();
    let o = &mut outcomes;
    clients[0]
        .batch_execute("DROP TABLE IF EXISTS items; CREATE TABLE items (id int PRIMARY KEY, name text)")
        .await
        .unwrap();
    pipelines(o, &clients).await;
    portals(o, &mut clients).await;
    given_up(o, &clients, port).await;
    outcomes
}

async fn pipelines(o: &mut Outcomes, clients: &[Client]) {
    let insert = clients[0].prepare("INSERT INTO items VALUES ($1, $2)").await.unwrap();
    let rows = (0..200).map(async |id: i32| {
        let name = format!("item {id}");
        clients[0].execute(&insert, &[&(id % 150), &name]).await.map_or_else(|e| code(&e), |n| n.to_string())
    });
    note(o, "two hundred inserts, some twice", join_all(rows).await);
    let all = clients.iter().enumerate().map(async |(k, client)| {
        let select = client.prepare_typed("SELECT name, $2::int FROM items WHERE id = $1", &[]).await.unwrap();
        let found = (0..40).map(async |id: i32| {
            let row = client.query_one(&select, &[&id, &i32::try_from(k).unwrap()]).await.unwrap();
            (row.get::<_, String>(0), row.get::<_, i32>(1))
        });
        join_all(found).await
    });
    note(o, "pipelines of six", json!(join_all(all).await));
    let client = &clients[1];
    let mixed = tokio::join!(
        client.simple_query("SELECT 1; SELECT 2"),
        client.query_one("SELECT 1 / 0", &[]),
        client.batch_execute("SELECT nonsense"),
        client.query_one("SELECT 3", &[]),
        client.query_typed("SELECT $1", &[(&"x", tokio_postgres::types::Type::TEXT)]),
    );
    let mixed = json!([
        mixed.0.unwrap().len(),
        code(&mixed.1.unwrap_err()),
        code(&mixed.2.unwrap_err()),
        mixed.3.unwrap().get::<_, i32>(0),
        mixed.4.unwrap()[0].get::<_, &str>(0)
    ]);
    note(o, "good and bad at once", mixed);
    // prepared and dropped without waiting
    for n in 0..60 {
        drop(client.prepare(&format!("SELECT {n}")).await.unwrap());
    }
    note(o, "after statements that were dropped", text(client, "SELECT 'fine'").await);
    let none: [&(dyn ToSql + Sync); 0] = [];
    let stream = client.query_raw("SELECT generate_series(1, 5000)", none).await.unwrap();
    let sum = stream.try_fold(0i64, async |sum, row| Ok(sum + i64::from(row.get::<_, i32>(0)))).await;
    note(o, "a stream", sum.unwrap());
}

async fn portals(o: &mut Outcomes, clients: &mut [Client]) {
    let [client, other, ..] = clients else { return };
    let transaction = client.transaction().await.unwrap();
    let statement = transaction.prepare("SELECT id FROM items WHERE id >= $1 ORDER BY id").await.unwrap();
    let portals =
        [transaction.bind(&statement, &[&0]).await.unwrap(), transaction.bind(&statement, &[&100]).await.unwrap()];
    let mut read = Vec::new();
    for round in 0..4 {
        for portal in &portals {
            let rows = transaction.query_portal(portal, 15).await.unwrap();
            read.push(json!([round, rows.len(), rows.first().map(|row| row.get::<_, i32>(0))]));
        }
        text(other, "SELECT 1").await;
    }
    note(o, "two portals in turns", read);
    drop(portals);
    transaction.commit().await.unwrap();
    let mut transaction = client.build_transaction().read_only(true).start().await.unwrap();
    note(o, "read only", code(&transaction.execute("DELETE FROM items", &[]).await.unwrap_err()));
    note(o, "what follows", code(&transaction.query_one("SELECT 1", &[]).await.unwrap_err()));
    note(o, "a savepoint there", code(&transaction.savepoint("s").await.map(drop).unwrap_err()));
    transaction.rollback().await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let savepoint = transaction.savepoint("s").await.unwrap();
    note(
        o,
        "an error after a savepoint",
        code(&savepoint.execute("INSERT INTO items VALUES (1)", &[]).await.unwrap_err()),
    );
    savepoint.rollback().await.unwrap();
    transaction.execute("UPDATE items SET name = 'kept' WHERE id = 1", &[]).await.unwrap();
    // rows are copied in and out in one transaction
    let sink = transaction.copy_in::<_, bytes::Bytes>("COPY items FROM STDIN").await.unwrap();
    pin_mut!(sink);
    sink.send(bytes::Bytes::from_static(b"5000\tx\n5001\ty\n")).await.unwrap();
    note(o, "copied in", sink.finish().await.unwrap());
    let out =
        transaction.copy_out("COPY (SELECT id FROM items WHERE id >= 5000) TO STDOUT (FORMAT binary)").await.unwrap();
    note(o, "copied out", out.try_fold(0, async |n, piece| Ok(n + piece.len())).await.unwrap());
    transaction.commit().await.unwrap();
    let left = client.transaction().await.unwrap();
    left.execute("UPDATE items SET name = 'left'", &[]).await.unwrap();
    drop(left);
    note(o, "a transaction that was dropped", text(other, "SELECT count(*) FROM items WHERE name = 'left'").await);
    note(o, "and one that was not", text(other, "SELECT name FROM items WHERE id = 1").await);
    // a sink that is dropped: the driver sends CopyFail
    let sink = client.copy_in::<_, bytes::Bytes>("COPY items FROM STDIN").await.unwrap();
    {
        pin_mut!(sink);
        sink.send(bytes::Bytes::from_static(b"6000\tx\n")).await.unwrap();
    }
    note(o, "a copy that was dropped", text(client, "SELECT count(*) FROM items WHERE id = 6000").await);
}

/// Cancels as libpq does, which returns when the server has closed the request's connection: PostgreSQL signals a
/// session twice (the process and its group), and what follows at once may meet the second signal. The driver's own
/// `cancel_query` does not wait.
async fn cancel_and_wait(token: &CancelToken, port: u16) {
    let mut asking = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    token.cancel_query_raw(&mut asking, NoTls).await.unwrap();
    assert_eq!(asking.read(&mut [0]).await.unwrap(), 0, "a cancel request is not answered");
}

async fn given_up(o: &mut Outcomes, clients: &[Client], port: u16) {
    let [client, other, watcher, ..] = clients else { return };
    // `active` is also said of the driver's Parse, which comes before: a cancel then would be lost
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(62)' AND wait_event = 'PgSleep'";
    for round in ["", ", again"] {
        let token = client.cancel_token();
        let cancel = async {
            wait_until(LONG, || async { text(watcher, active).await == "1" }).await;
            cancel_and_wait(&token, port).await;
        };
        let (cancelled, behind, ()) =
            tokio::join!(client.query_one("SELECT pg_sleep(62)", &[]), client.query_one("SELECT 2", &[]), cancel);
        note(o, &format!("cancelled{round}"), code(&cancelled.unwrap_err()));
        note(o, &format!("what was behind it{round}"), behind.unwrap().get::<_, i32>(0));
    }
    // a future that is dropped while its query runs
    let slow = "SELECT n FROM generate_series(1, 1000) AS n, pg_sleep(2)";
    let runs = format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{slow}' AND wait_event = 'PgSleep'");
    let came = tokio::select! {
        result = client.query(slow, &[]) => result.map_or_else(|error| code(&error), |rows| format!("{} rows", rows.len())),
        () = wait_until(LONG, || async { text(watcher, &runs).await == "1" }) => "nothing yet".to_owned(),
    };
    note(o, "dropped", came);
    note(o, "after it", text(client, "SELECT 'still there'").await);
    other.batch_execute("SET statement_timeout = 500").await.unwrap();
    note(o, "statement_timeout", code(&other.query_one("SELECT pg_sleep(60)", &[]).await.unwrap_err()));
    note(o, "after statement_timeout", text(other, "SHOW statement_timeout").await);
    note(o, "of another", text(client, "SHOW statement_timeout").await);
}
