//! A person with a browser: logs in, looks at the dashboard; what is drawn is what the primary holds.

use std::{path::Path, process::Command};

use crate::harness::Platform;

#[test]
fn drawn_numbers_are_the_primarys() {
    let platform = Platform::init();
    let said = platform.up(&["--sample"]);
    let password = said.split("password ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();

    // the numbers, asked of the operational database in its own words
    let number = |sql: &str| platform.sql("primary", sql);
    let expected = serde_json::json!({
        "loans": number("SELECT count(*) FROM operational.loans"),
        "collected": number("SELECT sum(amount) FROM operational.payments"),
        "by_status": rows(&number("SELECT status, count(*) FROM operational.loans GROUP BY status ORDER BY status")),
        "by_method": rows(&number("SELECT payment_method, sum(amount) FROM operational.payments GROUP BY payment_method ORDER BY payment_method")),
        "by_month": rows(&number("SELECT to_char(payment_date, 'YYYY-MM'), sum(amount) FROM operational.payments GROUP BY 1 ORDER BY 1")),
    });
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
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.lines().filter(|line| line.starts_with("ok")).count() >= 8, "{out}");
}

/// psql's unaligned rows as pairs.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split('|').collect()).collect()
}
