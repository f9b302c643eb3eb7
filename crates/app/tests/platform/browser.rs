//! A person with a browser: logs in, looks at the dashboard; what is drawn is what the primary holds, also
//! while customers act.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::harness::{Platform, command, kill};

#[test]
fn drawn_numbers_are_the_primarys() {
    let platform = Platform::init();
    let said = platform.up(&["--sample"]);
    let folder = tempfile::tempdir().unwrap();

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
    let expect_file = folder.path().join("expected.json");
    std::fs::write(&expect_file, expected.to_string()).unwrap();

    let output = script("dashboard.mjs", &platform, &password_file(folder.path(), &said))
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

/// Ends what was started, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A script that keeps a page open, says line by line what it sees, and is told what to expect.
pub(crate) struct OpenPage {
    tell: ChildStdin,
    lines: BufReader<ChildStdout>,
    browser: Running,
}

impl OpenPage {
    /// `said`: by the platform's first start.
    pub(crate) fn begin(name: &str, platform: &Platform, said: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let password = password_file(folder.path(), said);
        let mut browser = script(name, platform, &password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map(Running)
            .expect("node runs");
        let tell = browser.0.stdin.take().unwrap();
        let lines = BufReader::new(browser.0.stdout.take().unwrap());
        let mut page = Self { tell, lines, browser };
        page.wait_for("watching");
        page
    }

    /// Everything said before the word stands in the test's output.
    pub(crate) fn wait_for(&mut self, word: &str) {
        let mut lines = self.lines.by_ref().lines().map_while(Result::ok);
        let found = lines.by_ref().inspect(|line| println!("{line}")).any(|line| line == word);
        assert!(found, "the browser ended before it said `{word}`");
    }

    pub(crate) fn tell(&mut self, what: &str) {
        writeln!(self.tell, "{what}").unwrap();
    }

    /// What it says until it ends, which it must do well.
    pub(crate) fn rest(mut self) -> Vec<String> {
        let lines: Vec<String> = self.lines.by_ref().lines().map_while(Result::ok).collect();
        assert!(self.browser.0.wait().unwrap().success(), "{lines:#?}");
        lines
    }
}

#[test]
fn an_open_dashboard_follows_the_primary_and_its_login() {
    let platform = Platform::init();
    let said = platform.up(&["--sample"]);
    let mut page = OpenPage::begin("live.mjs", &platform, &said);
    let dir = platform.dir();
    let arguments = ["--dir", dir.to_str().unwrap(), "simulate", "--rate", "5"];
    let mut customers = Running(command(&arguments).stdout(Stdio::null()).spawn().unwrap());
    page.wait_for("moved");
    // not killed: what is on its way is done before the sum is asked for
    kill(customers.0.id(), "INT");
    customers.0.wait().unwrap();
    let collected = platform.sql("primary", "SELECT sum(amount) FROM operational.payments");
    page.tell(&format!("total_collected={collected}"));
    page.wait_for("equal");
    platform.run(&["user", "reset-password", "admin"]).ok();
    page.tell("the password is another");
    let lines = page.rest();
    assert!(!lines.iter().any(|line| line.starts_with("FAIL")), "{lines:#?}");
}

/// A script of the browser tests, to be run on the platform's console.
fn script(name: &str, platform: &Platform, password_file: &Path) -> Command {
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/tests").join(name))
        .args(["--url", &format!("https://localhost:{}", platform.base_port + 4)])
        .arg("--password-file")
        .arg(password_file);
    node
}

/// The first user's password, which `up` said, in a file.
fn password_file(folder: &Path, said: &str) -> PathBuf {
    let password = said.split("password ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let file = folder.join("password");
    std::fs::write(&file, password).unwrap();
    file
}

/// The statement's rows as one JSON array, in their order.
fn as_json(sql: &str) -> String {
    format!("SELECT coalesce(json_agg(q), '[]') FROM ({sql}) AS q")
}
