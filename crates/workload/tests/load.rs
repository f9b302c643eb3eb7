//! Sample data and the real bank's files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "the shared module serves several tests")]

mod pack;

use jiff::civil::date;
use millrace_config::{Pack, pack::TextFile};
use millrace_pg::Connection;
use millrace_testkit::{TestServer, data_set};
use millrace_workload::{Loaded, SampleOptions, WorkloadError, load_files, load_sample};
use pack::{INCONSISTENT, migrated, number, pack, params, text};

async fn sample(server: &TestServer, database: &str, scale: u32, seed: u64) -> Result<Loaded, WorkloadError> {
    let pack = pack();
    let scripts: Vec<&TextFile> = pack.generate.iter().filter(|f| f.name.starts_with("sample")).collect();
    let options = SampleOptions { scale, seed, today: date(2026, 6, 30) };
    load_sample(&params(server, database), &scripts, &options).await
}

/// Every value of every row, the trail's time apart.
async fn fingerprint(client: &Connection) -> Vec<String> {
    let mut prints = Vec::new();
    for table in ["customers", "loans", "payments"] {
        let sql = format!(
            "SELECT md5(string_agg(md5(t::text), '' ORDER BY 1)) FROM (SELECT t FROM operational.{table} t ORDER BY 1) AS t"
        );
        prints.push(text(client, &sql).await);
    }
    prints
}

#[tokio::test]
async fn sample_data_is_whole_and_the_same_each_time() {
    let server = TestServer::start().await;
    let client = migrated(&server, "one").await;
    let loaded = sample(&server, "one", 1, 1).await.unwrap();
    let rows = |table: &str| loaded.tables.iter().find(|(name, _)| name == table).map_or(0, |(_, rows)| *rows);
    assert_eq!(rows("operational.customers"), 2_000);
    assert!((90_000..=110_000).contains(&rows("operational.payments")), "{loaded:?}");
    assert_eq!(rows("operational.audit_log"), rows("operational.loans"));

    assert_eq!(number(&client, INCONSISTENT).await, 0);
    for (what, sql) in [
        ("every status is there", "SELECT 4 - count(DISTINCT status) FROM operational.loans"),
        ("every method is there", "SELECT 5 - count(DISTINCT payment_method) FROM operational.payments"),
        ("every segment is there", "SELECT 3 - count(DISTINCT segment) FROM operational.customers"),
        ("nothing lies in the future", "SELECT count(*) FROM operational.payments WHERE payment_date >= '2026-07-01Z'"),
        ("the repaid paid each instalment", "SELECT count(*) FROM operational.loans l WHERE status = 'repaid'
             AND tenure_months <> (SELECT count(*) FROM operational.payments p WHERE p.loan_id = l.loan_id)"),
        ("no payment before the money", "SELECT count(*) FROM operational.payments p JOIN operational.loans l USING (loan_id)
             WHERE payment_date < disbursed_at"),
        ("no loan before the customer", "SELECT count(*) FROM operational.loans l JOIN operational.customers c USING (customer_id)
             WHERE l.created_at < c.created_at"),
        ("customers can be reached", "SELECT count(*) FROM operational.customers WHERE email IS NULL OR phone !~ '^\\+2547[0-9]{8}$'"),
        ("interest is the month's", "SELECT count(*) FROM (SELECT p.interest_portion, l.interest_rate,
                 l.amount - sum(p.principal_portion) OVER (PARTITION BY loan_id ORDER BY payment_date) + p.principal_portion AS before
             FROM operational.payments p JOIN operational.loans l USING (loan_id)) AS x
             WHERE abs(interest_portion - before * interest_rate / 1200) > 0.02"),
    ] {
        assert_eq!(number(&client, sql).await, 0, "{what}");
    }
    let defaulted = number(&client, "SELECT count(*) * 1000 / (SELECT count(*) FROM operational.loans) FROM operational.loans WHERE status = 'defaulted'").await;
    assert!((30..100).contains(&defaulted), "{defaulted} of 1000 defaulted");
    assert!(number(&client, "SELECT count(*) FROM operational.payments WHERE penalty_portion > 0").await > 1_000);

    let again = migrated(&server, "two").await;
    sample(&server, "two", 1, 1).await.unwrap();
    assert_eq!(fingerprint(&client).await, fingerprint(&again).await);
    let other = migrated(&server, "three").await;
    sample(&server, "three", 1, 2).await.unwrap();
    assert_ne!(fingerprint(&client).await, fingerprint(&other).await);

    // numbers go on where the data ends
    client.batch_execute("INSERT INTO operational.customers (full_name) VALUES ('next')").await.unwrap();
    assert_eq!(number(&client, "SELECT max(customer_id) FROM operational.customers").await, 2_001);
}

#[tokio::test]
async fn sample_data_goes_into_empty_tables_only() {
    let server = TestServer::start().await;
    let client = migrated(&server, "app").await;
    client.batch_execute("INSERT INTO operational.customers (full_name) VALUES ('kept')").await.unwrap();
    let error = sample(&server, "app", 1, 1).await.unwrap_err();
    let WorkloadError::Load { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.to_string(), "there are customers, loans or payments in the database already");
    assert!(error.hint().unwrap().contains("empty tables only"));
    assert_eq!(number(&client, "SELECT count(*) FROM operational.customers").await, 1);
    assert_eq!(number(&client, "SELECT count(*) FROM operational.loans").await, 0);
}

fn berka(pack: &Pack) -> (TextFile, TextFile) {
    let file = |name: &str| pack.generate.iter().find(|f| f.name == name).unwrap().clone();
    (file("berka.toml"), file("berka.sql"))
}

#[tokio::test]
async fn the_real_bank() {
    let Some(folder) = data_set("berka", "fin_loan.tsv") else { return };
    let server = TestServer::start().await;
    let client = migrated(&server, "bank").await;
    let (description, script) = berka(&pack());
    load_files(&params(&server, "bank"), &description, &script, &folder).await.unwrap();
    for (sql, expected) in [
        ("SELECT count(*) FROM operational.customers", 4_500),
        ("SELECT count(*) FROM operational.loans", 682),
        ("SELECT count(*) FROM operational.loans WHERE status = 'repaid'", 203),
        ("SELECT count(*) FROM operational.loans WHERE status = 'defaulted'", 31),
        ("SELECT count(*) FROM operational.loans WHERE status = 'active'", 448),
        ("SELECT (sum(amount) * 100)::bigint FROM operational.loans", 1_032_617_400),
        ("SELECT count(*) FROM operational.payments WHERE source <> 'derived:contract'", 0),
        ("SELECT count(*) FROM operational.payments WHERE payment_date > '2018-12-31Z'", 0),
        (INCONSISTENT, 0),
        // C: all that was due. 606 loans run or ran well (A and C), 76 did not (B and D)
        (
            "SELECT count(*) FROM operational.loans l WHERE (
                 SELECT count(*) FROM generate_series(1, tenure_months) AS k
                 WHERE (disbursed_at AT TIME ZONE 'UTC')::date + k * interval '1 month' <= '2018-12-31')
             = (SELECT count(*) FROM operational.payments p WHERE p.loan_id = l.loan_id)",
            606,
        ),
    ] {
        assert_eq!(number(&client, sql).await, expected, "{sql}");
    }
    let again = load_files(&params(&server, "bank"), &description, &script, &folder).await.unwrap_err();
    assert!(again.hint().unwrap().contains("empty tables"));
}

#[tokio::test]
async fn damaged_files_load_nothing() {
    let server = TestServer::start().await;
    let client = migrated(&server, "bank").await;
    let (description, script) = berka(&pack());
    let folder = tempfile::tempdir().unwrap();
    let params = params(&server, "bank");
    let load = || load_files(&params, &description, &script, folder.path());
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();

    let error = load().await.unwrap_err();
    assert!(matches!(&error, WorkloadError::Read { path, .. } if path.ends_with("fin_account.tsv")), "{error}");

    for name in ["fin_account.tsv", "fin_client.tsv", "fin_disp.tsv", "fin_district.tsv"] {
        write(name, "");
    }
    write("fin_loan.tsv", "4959\t2\t2014-01-05\tmuch\t24\t337.30\tA\n");
    let error = load().await.unwrap_err();
    assert!(matches!(&error, WorkloadError::Load { what, .. } if what.ends_with("fin_loan.tsv")), "{error}");

    write("fin_loan.tsv", "4959\t2\t2014-01-05\t8000.00\t24\t337.30\tA\n");
    let error = load().await.unwrap_err();
    assert!(error.hint().unwrap().contains("PKDD'99"), "{error}");
    assert_eq!(number(&client, "SELECT count(*) FROM operational.loans").await, 0);
}
