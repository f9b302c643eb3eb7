//! The loans schema keeps its promises whatever an application does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "the shared module serves several tests")]

mod pack;

use millrace_testkit::TestServer;
use pack::{as_role, migrated, migrations, number, text};

#[tokio::test]
async fn constraints_hold() {
    let server = TestServer::start().await;
    let client = migrated(&server, "loans_db").await;
    client
        .batch_execute(
            "INSERT INTO operational.customers (full_name, email) VALUES ('A', 'a@example.com');
             INSERT INTO operational.loans (customer_id, product_id, amount, interest_rate, tenure_months, status,
                 outstanding_balance, disbursed_at, maturity_date, branch_code)
             VALUES (1, 1, 10000, 18, 12, 'active', 10000, now(), '2030-01-01', 'NBO-01')",
        )
        .await
        .unwrap();
    let loan = |columns: &str, values: &str| {
        format!(
            "INSERT INTO operational.loans (customer_id, product_id, interest_rate, branch_code, {columns}) VALUES (1, 1, 18, 'X', {values})"
        )
    };
    let payment = |values: &str| {
        format!(
            "INSERT INTO operational.payments (loan_id, amount, principal_portion, interest_portion, penalty_portion, payment_method)
             VALUES ({values})"
        )
    };
    for (sql, code, says) in [
        ("INSERT INTO operational.customers (full_name, segment) VALUES ('B', 'vip')".to_owned(), "23514", "segment"),
        (
            "INSERT INTO operational.customers (full_name, email) VALUES ('B', 'a@example.com')".to_owned(),
            "23505",
            "email",
        ),
        (
            loan("amount, tenure_months", "100, 12"),
            "23514",
            "a loan of 100.00 is outside the limits of \"Personal loan\"",
        ),
        (loan("amount, tenure_months", "10000, 25"), "23514", "25 months are outside the limits"),
        (loan("amount, tenure_months, status", "10000, 12, 'lost'"), "23514", "status"),
        (loan("amount, tenure_months, status", "10000, 12, 'active'"), "23514", "loans_balance_fits_status"),
        (loan("amount, tenure_months, disbursed_at", "10000, 12, now()"), "23514", "loans_"),
        ("UPDATE operational.loans SET outstanding_balance = -1".to_owned(), "23514", "loans_balance_fits_status"),
        ("UPDATE operational.loans SET tenure_months = 120".to_owned(), "23514", "months are outside"),
        (payment("1, 100, 50, 40, 5, 'cash'"), "23514", "payments_portions_add_up"),
        (payment("1, 0, 0, 0, 0, 'cash'"), "23514", "amount"),
        (payment("1, 10, 20, -10, 0, 'cash'"), "23514", "interest_portion"),
        (payment("1, 10, 10, 0, 0, 'gold'"), "23514", "payment_method"),
        (payment("9, 10, 10, 0, 0, 'cash'"), "23503", "payments_loan_id_fkey"),
    ] {
        let error = client.batch_execute(&sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), code, "{sql}: {error}");
        assert!(error.message().contains(says), "{sql}: {error}");
    }
}

#[tokio::test]
async fn changes_leave_their_time_and_trail() {
    let server = TestServer::start().await;
    let client = migrated(&server, "loans_db").await;
    let app = as_role(&server, "loans_db", "app_user").await;
    app.batch_execute("INSERT INTO operational.customers (full_name, created_at, updated_at) VALUES ('A', '2020-01-01', '2020-01-01')")
        .await
        .unwrap();
    app.batch_execute("UPDATE operational.customers SET city = 'Kisumu'").await.unwrap();
    assert_eq!(
        number(&client, "SELECT count(*) FROM operational.customers WHERE updated_at > now() - interval '1 hour'")
            .await,
        1
    );

    app.batch_execute(
        "INSERT INTO operational.loans (customer_id, product_id, amount, interest_rate, tenure_months, branch_code)
         VALUES (1, 1, 10000, 18, 12, 'NBO-01')",
    )
    .await
    .unwrap();
    app.batch_execute(
        "UPDATE operational.loans SET status = 'active', outstanding_balance = amount, disbursed_at = now(), maturity_date = '2030-01-01'",
    )
    .await
    .unwrap();
    app.batch_execute("DELETE FROM operational.loans").await.unwrap();
    let trail = text(
        &client,
        "SELECT string_agg(concat_ws(' ', table_name, operation, record_id, old_values->>'status', '>', new_values->>'status',
             changed_by), ',' ORDER BY log_id) FROM operational.audit_log",
    )
    .await;
    assert_eq!(
        trail,
        "loans INSERT 1 > pending app_user,loans UPDATE 1 pending > active app_user,loans DELETE 1 active > app_user"
    );
    assert_eq!(
        text(&client, "SELECT new_values->>'amount' FROM operational.audit_log WHERE log_id = 1").await,
        "10000.00"
    );
}

#[tokio::test]
async fn each_role_has_the_least_it_needs() {
    let server = TestServer::start().await;
    let owner = migrated(&server, "loans_db").await;
    // tables of later migrations: looked up by people, not copied by capture
    owner.batch_execute("CREATE TABLE operational.later (a int)").await.unwrap();
    let allowed: [(&str, &[&str], &[&str]); 3] = [
        (
            "app_user",
            &[
                "INSERT INTO operational.customers (full_name) VALUES ('A')",
                "UPDATE operational.customers SET city = 'Meru'",
                "SELECT count(*) FROM operational.vw_active_loans",
                "SELECT count(*) FROM operational.audit_log",
            ],
            &[
                "DELETE FROM operational.audit_log",
                "INSERT INTO operational.audit_log (table_name, operation, record_id) VALUES ('loans', 'DELETE', 1)",
                "UPDATE operational.loan_products SET interest_rate = 0",
                "TRUNCATE operational.payments",
                "CREATE TABLE operational.x ()",
                "CREATE TABLE public.x ()",
                "SELECT * FROM public.flyway_schema_history",
            ],
        ),
        (
            "readonly_user",
            &[
                "SELECT * FROM operational.customers",
                "SELECT * FROM operational.later",
                "SELECT * FROM operational.vw_customer_payment_summary",
            ],
            &["INSERT INTO operational.customers (full_name) VALUES ('A')", "DELETE FROM operational.payments"],
        ),
        (
            "etl_reader",
            &[
                "SELECT * FROM operational.customers",
                "SELECT * FROM operational.loan_products",
                "SELECT * FROM operational.loans",
                "SELECT * FROM operational.payments",
            ],
            &[
                "SELECT * FROM operational.audit_log",
                "SELECT * FROM operational.later",
                "DELETE FROM operational.payments",
            ],
        ),
    ];
    for (role, may, may_not) in allowed {
        let client = as_role(&server, "loans_db", role).await;
        for sql in may {
            client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{role}: {sql}: {e}"));
        }
        for sql in may_not {
            let error = client.batch_execute(sql).await.expect_err(sql);
            assert_eq!(error.code().map(|c| c.code()), Some("42501"), "{role}: {sql}: {error}");
        }
    }
}

#[tokio::test]
async fn migrations_need_no_platform() {
    let server = TestServer::start().await;
    let mut client = server.create_database("alone").await;
    let pack = pack::pack();
    millrace_migrate::up(client.client_mut(), &migrations(&pack), "tester").await.unwrap();
    let logins = number(
        &client,
        "SELECT count(*) FROM pg_roles WHERE rolname IN ('app_user', 'readonly_user', 'etl_reader') AND NOT rolcanlogin",
    )
    .await;
    assert_eq!(logins, 3);
}
