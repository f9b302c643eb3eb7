//! Every report's SQL runs in PostgreSQL, with and without its parameters, and says what the books say.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "the shared module serves several tests")]

mod pack;

use jiff::civil::date;
use millrace_base::ident::Literal;
use millrace_config::pack::TextFile;
use millrace_contract::report::Report;
use millrace_pg::Connection;
use millrace_testkit::TestServer;
use millrace_workload::{SampleOptions, load_sample};
use pack::{migrated, pack, params, text};
use tokio_postgres::SimpleQueryMessage;

/// Rows as text, by the columns' names.
async fn run(client: &Connection, report: &Report, values: &[(&str, &str)]) -> Vec<Vec<(String, String)>> {
    let mut sql = report.sql.clone();
    for (n, param) in report.params.iter().enumerate().rev() {
        let value = values.iter().find(|(name, _)| *name == param.name).map(|(_, value)| Literal(value).to_string());
        let value = value.or_else(|| param.default.as_ref().map(|d| Literal(d).to_string()));
        sql = sql.replace(&format!("${}", n + 1), &value.unwrap_or_else(|| "NULL".to_owned()));
    }
    let messages = client.simple_query(&sql).await.unwrap_or_else(|e| panic!("{}: {e:?}\n{sql}", report.name));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let cell = |(i, c): (usize, &tokio_postgres::SimpleColumn)| {
                (c.name().to_owned(), row.get(i).unwrap_or_default().to_owned())
            };
            Some(row.columns().iter().enumerate().map(cell).collect())
        }
        _ => None,
    });
    rows.collect()
}

fn value<'r>(row: &'r [(String, String)], column: &str) -> &'r str {
    row.iter().find(|(name, _)| name == column).map(|(_, value)| value.as_str()).unwrap()
}

#[tokio::test]
async fn reports_run_and_agree_with_the_books() {
    let server = TestServer::start().await;
    let client = migrated(&server, "loans_db").await;
    let pack = pack();
    let scripts: Vec<&TextFile> = pack.generate.iter().filter(|f| f.name.starts_with("sample")).collect();
    let options = SampleOptions { scale: 1, seed: 1, today: date(2026, 6, 30) };
    load_sample(&params(&server, "loans_db"), &scripts, &options).await.unwrap();
    client.batch_execute(include_str!("pack/star.sql")).await.unwrap();

    let filters = [
        ("from", "2024-01-01"),
        ("to", "2024-12-31"),
        ("segment", "retail"),
        ("branch", "NBO-01"),
        ("status", "defaulted"),
        ("method", "mpesa"),
        ("customer", "7"),
        ("limit", "3"),
    ];
    assert_eq!(pack.catalog.reports.len(), 11);
    for report in &pack.catalog.reports {
        for values in [&[][..], &filters[..]] {
            let rows = run(&client, report, values).await;
            assert!(rows.len() <= 1_000, "{}", report.name);
            // what is drawn, written and followed is among the columns
            let Some(row) = rows.first() else {
                assert!(!values.is_empty(), "{} is empty without filters", report.name);
                continue;
            };
            let named = report.x.iter().chain(&report.y).chain(report.formats.iter().map(|(column, _)| column));
            for column in named.chain(report.drill.iter().flat_map(|d| d.bind.iter().map(|(_, column)| column))) {
                assert!(row.iter().any(|(name, _)| name == column), "{} has no column {column}", report.name);
            }
        }
        for sql in report.params.iter().filter_map(|p| p.choices_sql.as_ref()) {
            assert!(!client.query(sql, &[]).await.unwrap().is_empty(), "{sql}");
        }
    }

    let report = |name: &str| pack.catalog.report(name).unwrap().clone();
    let portfolio = run(&client, &report("portfolio"), &[]).await;
    for (column, sql) in [
        ("loans_issued", "SELECT count(*)::text FROM operational.loans WHERE disbursed_at IS NOT NULL"),
        ("amount_lent", "SELECT sum(amount)::text FROM operational.loans WHERE disbursed_at IS NOT NULL"),
        ("outstanding", "SELECT sum(outstanding_balance)::text FROM operational.loans"),
        ("total_collected", "SELECT sum(amount)::text FROM operational.payments"),
        ("revenue", "SELECT sum(interest_portion + penalty_portion)::text FROM operational.payments"),
    ] {
        assert_eq!(value(&portfolio[0], column), text(&client, sql).await, "{column}");
    }
    let months =
        run(&client, &report("monthly_revenue"), &[("from", "2025-03-01"), ("to", "2025-04-30"), ("segment", "sme")])
            .await;
    let months: Vec<_> = months.iter().map(|m| (value(m, "month"), value(m, "collected").to_owned())).collect();
    let mut expected = Vec::new();
    for month in ["2025-03-01", "2025-04-01"] {
        let sql = format!(
            "SELECT sum(p.amount)::text FROM operational.payments p JOIN operational.loans USING (loan_id)
             JOIN operational.customers USING (customer_id)
             WHERE segment = 'sme' AND date_trunc('month', payment_date AT TIME ZONE 'UTC') = '{month}'"
        );
        expected.push((month, text(&client, &sql).await));
    }
    assert_eq!(months, expected);
}
