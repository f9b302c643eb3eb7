//! A copy and changes on their way into the loans star.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod loans;

use loans::*;
use millrace_contract::{Op, RunKind, Sink, Step};

async fn copied(engine: &std::sync::Arc<millrace_warehouse::Engine>) -> millrace_warehouse::DuckSink {
    let mut sink = sink(engine);
    let copy = |values: Vec<Vec<Text>>| {
        values.into_iter().enumerate().map(|(i, v)| (head(Op::Copy, 10, i as u64), v)).collect::<Vec<_>>()
    };
    let steps = vec![
        Step::Schema(customers()),
        Step::Schema(loans::loans()),
        Step::Schema(payments()),
        rows(&customers(), &copy(vec![customer(1, "retail"), customer(2, "sme")])),
        rows(&loans::loans(), &copy(vec![loan(1, 1, "active", "900.00"), loan(2, 2, "active", "1000.00")])),
        rows(
            &payments(),
            &copy(vec![
                payment(1, 1, "100.00", "2024-01-08 09:00:00+00"),
                payment(2, 9, "5.00", "1999-01-08 09:00:00+00"),
            ]),
        ),
    ];
    apply(&mut sink, RunKind::InitialCopy, steps, 10).await.unwrap();
    sink
}

#[tokio::test]
async fn a_copy_fills_the_star() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = copied(&engine).await;
    assert_eq!(
        query::<String>(&engine, "select full_name from warehouse.dim_customer order by customer_sk"),
        ["Unknown", "Customer 1", "Customer 2"]
    );
    assert_eq!(query::<i32>(&engine, "select date_sk from warehouse.fact_payments order by payment_id"), [20240108, 0]);
    assert_eq!(query::<i64>(&engine, "select customer_sk from warehouse.fact_payments order by payment_id"), [1, 0]);
    assert_eq!(
        query::<String>(&engine, "select total_paid::varchar from warehouse.fact_loans order by loan_id"),
        ["100.00", "0.00"]
    );
    assert_eq!(query::<i64>(&engine, "select payment_count from warehouse.fact_loans order by loan_id"), [1, 0]);
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.dim_date"), [12_054]);
    assert_eq!(query::<i64>(&engine, "select payment_count from warehouse.vw_monthly_revenue"), [1]);
    let resume = sink.resume().await.unwrap();
    assert_eq!((resume.watermark.0, resume.system_id, resume.tables.len()), (10, Some(42), 3));
    assert_verified(&engine);
    sink.close().await;
}

#[tokio::test]
async fn changes_reach_what_they_touch() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = copied(&engine).await;
    let steps = vec![
        rows(&customers(), &[(head(Op::Update, 20, 0), customer(1, "corporate"))]),
        rows(&loans::loans(), &[(head(Op::Update, 30, 1), loan(1, 1, "repaid", "0.00"))]),
        rows(
            &payments(),
            &[
                (head(Op::Insert, 30, 0), payment(3, 1, "50.00", &day_of(25))),
                (head(Op::Insert, 31, 0), payment(4, 9, "1.00", &day_of(25))),
                (head(Op::Delete, 32, 0), texts(&["2", "", "", "", "", "", "", ""])),
            ],
        ),
    ];
    let applied = apply(&mut sink, RunKind::Changes, steps, 32).await.unwrap();
    assert_eq!((applied.rows_inserted, applied.rows_updated, applied.rows_deleted), (2, 2, 1));
    assert_eq!(
        query::<String>(
            &engine,
            "select segment from warehouse.dim_customer where customer_id = 1 order by valid_from"
        ),
        ["retail", "corporate"]
    );
    assert_eq!(
        query::<bool>(
            &engine,
            "select is_current from warehouse.dim_customer where customer_id = 1 order by valid_from"
        ),
        [false, true]
    );
    // the old payment keeps the version of its day, the new one has the new one
    assert_eq!(
        query::<String>(
            &engine,
            "select c.segment from warehouse.fact_payments f join warehouse.dim_customer c using (customer_sk) order by payment_id"
        ),
        ["retail", "corporate", "Unknown"]
    );
    assert_eq!(
        query::<String>(&engine, "select loan_status from warehouse.fact_payments where payment_id = 1"),
        ["repaid"]
    );
    assert_eq!(
        query::<String>(&engine, "select total_paid::varchar from warehouse.fact_loans where loan_id = 1"),
        ["150.00"]
    );
    assert_verified(&engine);

    // the late loan arrives: its payment finds it
    let late = vec![rows(&loans::loans(), &[(head(Op::Insert, 40, 0), loan(9, 2, "active", "10.00"))])];
    apply(&mut sink, RunKind::Changes, late, 40).await.unwrap();
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.fact_payments where loan_sk = 0"), [0]);
    assert_verified(&engine);

    // gone with its parents
    let gone = vec![
        rows(&customers(), &[(head(Op::Delete, 50, 0), texts(&["2", "", "", "", "", "", ""]))]),
        Step::Truncate { table: payments().table.clone(), head: head(Op::Delete, 51, 0) },
    ];
    let applied = apply(&mut sink, RunKind::Changes, gone, 51).await.unwrap();
    assert_eq!(applied.rows_deleted, 4);
    assert_eq!(query::<i64>(&engine, "select count(*) from warehouse.fact_payments"), [0]);
    assert_eq!(
        query::<i64>(&engine, "select count(*) from warehouse.dim_customer where customer_id = 2 and is_current"),
        [0]
    );
    assert_eq!(query::<i64>(&engine, "select count(*) from raw.payments where _op = 'D'"), [4]);
    assert_verified(&engine);

    let keys = query::<String>(
        &engine,
        "select customer_sk || ' ' || customer_id from warehouse.dim_customer where customer_sk > 0 order by all",
    );
    sink.handle().rebuild().await.unwrap();
    assert_eq!(
        query::<String>(
            &engine,
            "select customer_sk || ' ' || customer_id from warehouse.dim_customer where customer_sk > 0 order by all"
        ),
        keys
    );
    assert_verified(&engine);
    sink.close().await;
}

#[tokio::test]
async fn of_two_equal_rows_one_may_go() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = copied(&engine).await;
    let twins =
        [21, 22].map(|id| (head(Op::Insert, 20, id), payment(u32::try_from(id).unwrap(), 1, "7.00", &day_of(20))));
    apply(&mut sink, RunKind::Changes, vec![rows(&payments(), &twins)], 20).await.unwrap();
    let before: i64 = query(&engine, "select payment_count from warehouse.fact_loans where loan_id = 1")[0];
    // one changes in what the fact of loans does not read, its twin goes
    let steps = vec![rows(
        &payments(),
        &[
            (head(Op::Update, 30, 0), payment(21, 1, "7.00", &day_of(21))),
            (head(Op::Delete, 30, 1), texts(&["22", "", "", "", "", "", "", ""])),
        ],
    )];
    apply(&mut sink, RunKind::Changes, steps, 30).await.unwrap();
    assert_eq!(query::<i64>(&engine, "select payment_count from warehouse.fact_loans where loan_id = 1"), [before - 1]);
    assert_verified(&engine);
    // and one comes beside one that changes
    let steps = vec![rows(
        &payments(),
        &[
            (head(Op::Update, 40, 0), payment(21, 1, "7.00", &day_of(22))),
            (head(Op::Insert, 40, 1), payment(23, 1, "7.00", &day_of(22))),
        ],
    )];
    apply(&mut sink, RunKind::Changes, steps, 40).await.unwrap();
    assert_eq!(query::<i64>(&engine, "select payment_count from warehouse.fact_loans where loan_id = 1"), [before]);
    assert_verified(&engine);
    sink.close().await;
}
