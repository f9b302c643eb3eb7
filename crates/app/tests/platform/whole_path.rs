//! One platform through all of its words.

use std::time::Duration;

use crate::harness::{Platform, alive, wait_until};

#[test]
fn from_init_to_nuke() {
    let platform = Platform::init();
    platform.run(&["check"]).ok();

    let said = platform.up(&["--sample"]);
    assert!(said.contains("user admin, password "), "{said}");
    assert!(said.contains(&format!("https://localhost:{}/", platform.base_port + 4)), "{said}");

    // a second up says that it runs already, and says no password again
    let again = platform.run(&["up"]).ok();
    assert!(again.contains("runs already") && !again.contains("password"), "{again}");

    let status = platform.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(status["capture"]["state"], "streaming", "{status:#}");
    wait_until("health", || platform.run(&["health"]).code == 0);

    // data arrived, the five views answer, and money adds up on both sides
    let payments: u64 = platform.sql("primary", "SELECT count(*) FROM operational.payments").parse().unwrap();
    assert!((90_000..=110_000).contains(&payments), "{payments} payments at scale 1");
    let sum = "SELECT count(*), sum(amount) FROM operational.payments";
    let star = "SELECT count(*), sum(payment_amount) FROM warehouse.fact_payments";
    assert_eq!(platform.sql("primary", sum), platform.sql("warehouse", star));
    for view in
        ["monthly_revenue", "top_customers", "loan_status_distribution", "payment_by_method", "branch_performance"]
    {
        let rows: u64 =
            platform.sql("warehouse", &format!("SELECT count(*) FROM warehouse.vw_{view}")).parse().unwrap();
        assert!(rows > 0, "vw_{view} is empty");
    }
    assert!(platform.sql("warehouse", "\\dt warehouse.*").contains("fact_payments"));

    let checks = platform.run(&["verify", "--json"]);
    assert_eq!(checks.code, 0, "{checks:?}");
    assert!(checks.json().as_array().unwrap().len() > 20);
    platform.prove();

    // replicas stream and refuse writes
    assert_eq!(
        platform.sql(
            "primary",
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name IN ('b', 'c')"
        ),
        "2"
    );
    assert_eq!(platform.sql("replica1", "SELECT pg_is_in_recovery()"), "t");
    platform.try_sql("replica2", "DELETE FROM operational.payments").failed(1, "read-only transaction");
    platform.try_sql("warehouse", "DELETE FROM warehouse.fact_loans").failed(1, "read-only");

    let reports = platform.run(&["report", "list", "--json"]).json();
    for report in reports.as_array().unwrap() {
        platform.run(&["report", "run", report["name"].as_str().unwrap(), "--format", "csv"]).ok();
    }
    platform.run(&["report", "run", "nonsense"]).failed(1, "there is no report called `nonsense`");
    platform
        .run(&["report", "run", "monthly_revenue", "--param", "from=yesterday"])
        .failed(1, "`yesterday` is not a date");

    let processes = platform.run(&["ps", "--json"]).json();
    let servers: Vec<_> = processes.as_array().unwrap().iter().filter(|p| p["name"] != "millrace").collect();
    assert_eq!(servers.len(), 3);
    assert!(servers.iter().all(|p| p["uid"] != 0), "a server runs as root: {processes:#}");
    passwords_are_nowhere(&platform);

    assert!(platform.run(&["model", "plan"]).ok().contains("nothing to do"));
    platform.run(&["model", "rebuild"]).ok();
    platform.prove();
    platform.run(&["migrate", "validate"]).ok();
    assert!(platform.run(&["logs", "-n", "5"]).ok().contains("millrace"));
    platform.run(&["user", "add", "analyst"]).ok();
    platform.run(&["user", "add", "analyst"]).failed(2, "there is a user analyst already");
    platform.run(&["nuke", "--yes"]).failed(1, "the platform runs");

    let pids = platform.node_pids();
    platform.down();
    assert!(pids.iter().all(|pid| !alive(u32::try_from(*pid).unwrap())), "a server outlived `down`");
    platform.run(&["status"]).failed(1, "the platform is not running");
    assert!(platform.run(&["down"]).ok().contains("nothing runs"));

    // everything is there after a restart
    platform.up(&[]);
    assert_eq!(platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments"), payments.to_string());
    platform.down();
    platform.run(&["nuke"]).failed(2, "nothing was deleted");
    platform.run(&["nuke", "--yes"]).ok();
    assert!(!platform.data().join("nodes").exists());
}

/// Neither a process's command line nor any log shows a password.
fn passwords_are_nowhere(platform: &Platform) {
    let secrets = std::fs::read_to_string(platform.dir().join("secrets.toml")).unwrap();
    let passwords: Vec<&str> =
        secrets.lines().filter_map(|line| line.split('"').nth(1)).filter(|text| text.len() > 20).collect();
    assert!(passwords.len() >= 6, "{} passwords in secrets.toml", passwords.len());
    let mut texts: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    for log in std::fs::read_dir(platform.data().join("logs")).unwrap().flatten() {
        texts.push(std::fs::read_to_string(log.path()).unwrap_or_default());
    }
    for password in passwords {
        assert!(!texts.iter().any(|text| text.contains(password)), "a password is in a command line or a log");
    }
}

#[test]
fn simulated_customers_move_the_warehouse() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    let before: u64 = platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments").parse().unwrap();
    platform.run(&["simulate", "--rate", "100", "--seconds", "4"]).ok();
    wait_until("new payments in the warehouse", || {
        platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments").parse::<u64>().unwrap() > before
    });
    platform.prove();
    let runs = platform.sql("warehouse", "SELECT count(*) FROM audit.etl_runs WHERE status = 'committed'");
    assert!(runs.parse::<u64>().unwrap() >= 2, "{runs} runs");
    // fresh: a change is seen within two seconds
    let started = std::time::Instant::now();
    platform.sql("primary", "UPDATE operational.customers SET city = 'Verify City' WHERE customer_id = (SELECT min(customer_id) FROM operational.customers)");
    wait_until("the change", || {
        platform
            .sql("warehouse", "SELECT count(*) FROM warehouse.dim_customer WHERE city = 'Verify City' AND is_current")
            == "1"
    });
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn nothing_starts_while_nuke_is_at_work() {
    use std::{io::Write, process::Stdio};
    let platform = Platform::init();
    platform.up(&[]);
    let name = platform.status()["name"].as_str().unwrap().to_owned();
    platform.down();
    let dir = platform.dir();
    let mut nuke = crate::harness::command(&["--dir", dir.to_str().unwrap(), "nuke"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let holder = || std::fs::read_to_string(platform.data().join("run/platform.lock")).unwrap_or_default();
    wait_until("nuke to ask", || holder().trim() == nuke.id().to_string());
    platform.run(&["up"]).failed(1, "the platform's lock is held");
    platform.run(&["nuke", "--yes"]).failed(1, "the platform runs");
    assert!(platform.data().join("nodes").exists());
    nuke.stdin.take().unwrap().write_all(format!("{name}\n").as_bytes()).unwrap();
    assert!(nuke.wait().unwrap().success());
    assert!(!platform.data().join("nodes").exists());
    platform.up(&[]);
    platform.down();
}
