//! A person with a browser: logs in, looks at the dashboard; what is drawn is what the primary holds.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::harness::Platform;

#[test]
fn drawn_numbers_are_the_primarys() {
    let platform = Platform::init();
    let said = platform.up(&["--sample"]);
    let password = said.split("password ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();

    // the numbers, asked of the operational database in its own words
    let rows = |sql: &str| -> Value { serde_json::from_str(&platform.sql("primary", &as_json(sql))).unwrap() };
    let expected = serde_json::json!({ "tiles": {
        "portfolio": rows(
            "SELECT (SELECT count(*) FROM operational.loans WHERE status <> 'pending')::text AS loans_issued,
                    (SELECT sum(amount) FROM operational.loans WHERE status <> 'pending')::text AS amount_lent,
                    (SELECT sum(outstanding_balance) FROM operational.loans WHERE status <> 'pending')::text AS outstanding,
                    (SELECT sum(amount) FROM operational.payments)::text AS total_collected,
                    (SELECT sum(interest_portion + penalty_portion) FROM operational.payments)::text AS revenue"
        ),
        "loan_status": rows(
            "SELECT status AS loan_status, count(*)::text AS loans, sum(amount)::text AS amount_lent
             FROM operational.loans GROUP BY status ORDER BY count(*) DESC, status"
        ),
        "payment_methods": rows(
            "SELECT payment_method AS method_code, sum(amount)::text AS collected, count(*)::text AS payments
             FROM operational.payments GROUP BY payment_method ORDER BY sum(amount) DESC, payment_method"
        ),
        "monthly_revenue": rows(
            "SELECT to_char(date_trunc('month', payment_date), 'YYYY-MM-DD') AS month, sum(interest_portion)::text AS interest,
                    sum(penalty_portion)::text AS penalties, count(*)::text AS payments
             FROM operational.payments GROUP BY date_trunc('month', payment_date) ORDER BY date_trunc('month', payment_date)"
        ),
    }});
    let folder = tempfile::tempdir().unwrap();
    let (expect_file, password_file) = (folder.path().join("expected.json"), folder.path().join("password"));
    std::fs::write(&expect_file, expected.to_string()).unwrap();
    std::fs::write(&password_file, password).unwrap();

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new("node")
        .arg(root.join("web/tests/dashboard.mjs"))
        .args(["--url", &format!("https://localhost:{}", platform.base_port + 4)])
        .arg("--password-file")
        .arg(&password_file)
        .arg("--expect")
        .arg(&expect_file)
        .output()
        .expect("node runs");
    // its own lines, for whoever reads the test's output
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.lines().filter(|line| line.starts_with("ok")).count() >= 15, "{out}");
}

/// The statement's rows as one JSON array, in their order.
fn as_json(sql: &str) -> String {
    format!("SELECT coalesce(json_agg(q), '[]') FROM ({sql}) AS q")
}
