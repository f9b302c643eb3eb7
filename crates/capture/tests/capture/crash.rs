//! Death at any moment.

use std::time::Duration;

use millrace_testkit::wait_until;
use tokio::time::Instant;

use crate::harness::{Harness, SOON};

#[tokio::test]
async fn nothing_is_lost_or_doubled_by_crashes() {
    let settings = [("logical_decoding_work_mem", "64kB")];
    let sql =
        "CREATE TABLE a (id serial PRIMARY KEY, v text, n int DEFAULT 0); CREATE TABLE b (id int PRIMARY KEY, v text);
               INSERT INTO a (v) SELECT repeat(md5(i::text), 50) FROM generate_series(1, 20000) i";
    let mut h = Harness::with(&settings, sql, &["a", "b"]).await;
    h.options.step_bytes = 200_000;
    h.options.batch_age = Duration::from_millis(20);
    h.start().await;
    let (one, two) = (h.server.client_to("source").await, h.server.client_to("source").await);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(12);
    let load_one = async {
        let mut i = 0;
        while Instant::now() < until {
            i += 1;
            let sql = format!(
                "INSERT INTO a (v) VALUES ('one {i}'); UPDATE a SET n = n + 1 WHERE id % 1000 = {i} % 1000;
                 UPDATE a SET id = -id WHERE id = {i}; DELETE FROM a WHERE id = {i} - 5000",
            );
            one.batch_execute(&sql).await.unwrap();
        }
    };
    let load_two = async {
        while Instant::now() < until {
            two.batch_execute(
                "BEGIN; TRUNCATE b; INSERT INTO b SELECT i, repeat('b', 100) FROM generate_series(1, 3000) i; SAVEPOINT s;
                 DELETE FROM b; ROLLBACK TO s; UPDATE b SET v = 'x' WHERE id % 3 = 0; COMMIT",
            )
            .await
            .unwrap();
        }
    };
    let crashes = async {
        // unlike from one run to the next, and without a sleep of a fixed length
        let mut wait = 7u64;
        while Instant::now() < until {
            wait = (wait * 7919 + 13) % 601;
            let at = Instant::now() + Duration::from_millis(wait);
            wait_until(SOON, || async { Instant::now() >= at }).await;
            h.crash();
            h.resume();
        }
    };
    tokio::join!(load_one, load_two, crashes);
    h.same().await;
    h.stop().await;
    assert!(std::fs::read_dir(&h.options.spill_folder).unwrap().next().is_none());
}

#[tokio::test]
async fn a_crash_of_the_source_is_survived() {
    let mut h = Harness::with(&[("fsync", "on")], "CREATE TABLE t (id serial PRIMARY KEY)", &["t"]).await;
    h.start().await;
    for _ in 0..3 {
        h.db.batch_execute("INSERT INTO t SELECT FROM generate_series(1, 1000)").await.unwrap();
        h.server.kill().await;
        h.server.start_again().await;
        h.db = h.server.client_to("source").await;
        h.same().await;
    }
    h.stop().await;
}
