//! What people do to the source under a running platform.

use crate::harness::{Platform, wait_until};

fn capture_state(platform: &Platform) -> String {
    platform.status()["capture"]["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_value_that_cannot_be_stored_stops_its_table_until_a_resync() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    platform.sql(
        "primary",
        "ALTER TABLE operational.loans DISABLE TRIGGER USER; ALTER TABLE operational.loans ADD COLUMN fee numeric(8,2)",
    );
    let loan = platform.sql("primary", "UPDATE operational.loans SET fee = 'NaN' WHERE loan_id = (SELECT min(loan_id) FROM operational.loans) RETURNING loan_id");
    wait_until("the quarantine", || {
        platform.status()["capture"]["quarantined"].to_string().contains("operational.loans")
    });
    let status = platform.run(&["status"]).ok();
    assert!(status.contains("operational.loans") && status.contains("millrace resync operational.loans"), "{status}");
    platform.run(&["health"]).failed(1, "");

    // the other tables go on
    platform.sql("primary", "UPDATE operational.customers SET city = 'Elsewhere' WHERE customer_id = (SELECT min(customer_id) FROM operational.customers)");
    wait_until("customers to go on", || {
        platform.sql("warehouse", "SELECT count(*) FROM staging.customers WHERE city = 'Elsewhere'") == "1"
    });
    // and nothing that the table's writers do meanwhile is lost
    platform.sql("primary", &format!("UPDATE operational.loans SET fee = 1.50 WHERE loan_id = {loan}"));
    platform.run(&["resync", "operational.loans"]).ok();
    assert_eq!(platform.sql("warehouse", &format!("SELECT fee FROM staging.loans WHERE loan_id = {loan}")), "1.50");
    wait_until("health", || platform.run(&["health"]).code == 0);
    platform.prove();
}

#[test]
fn columns_come_and_go_under_load() {
    let platform = Platform::init();
    platform.up(&["--sample", "--simulate", "50"]);
    platform.sql("primary", "ALTER TABLE operational.customers ADD COLUMN nickname text");
    platform.sql("primary", "UPDATE operational.customers SET nickname = 'n' || customer_id WHERE customer_id % 7 = 0");
    let expected = platform.sql("primary", "SELECT count(nickname) FROM operational.customers");
    wait_until("the new column", || {
        let said = platform.try_sql("warehouse", "SELECT count(nickname) FROM staging.customers");
        said.code == 0 && said.stdout.trim() == expected
    });
    platform.sql("primary", "ALTER TABLE operational.customers DROP COLUMN nickname");
    platform.sql("primary", "UPDATE operational.customers SET phone = phone WHERE customer_id % 7 = 0");
    wait_until("the column to be gone", || {
        platform.try_sql("warehouse", "SELECT nickname FROM staging.customers LIMIT 1").code != 0
    });
    platform.prove();
}

#[test]
fn a_dropped_slot_is_said_and_the_way_back_works() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    platform.down();
    // the slot goes while the platform is away: started by hand, dropped by hand
    platform.up(&[]);
    platform.sql(
        "primary",
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'millrace'",
    );
    wait_until("the slot to be dropped", || {
        platform
            .try_sql("primary", "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'millrace' AND active")
            .code
            == 0
            && platform.try_sql("primary", "SELECT pg_drop_replication_slot('millrace')").code == 0
    });
    wait_until("capture to say so", || capture_state(&platform) == "stopped");
    let status = platform.run(&["status"]).ok();
    assert!(status.contains("slot millrace does not exist") && status.contains("--recopy"), "{status}");
    platform.sql("primary", "UPDATE operational.customers SET city = 'Lost City' WHERE customer_id = (SELECT min(customer_id) FROM operational.customers)");

    // a restart does not make a new slot in silence
    platform.down();
    let said = platform.up(&[]);
    assert!(said.contains("capture stopped"), "{said}");
    platform.down();
    platform.up(&["--recopy"]);
    platform.prove();
    assert_eq!(platform.sql("warehouse", "SELECT count(*) FROM staging.customers WHERE city = 'Lost City'"), "1");
}

#[test]
fn a_table_that_left_the_publication_is_brought_back_whole() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    platform.sql("primary", "ALTER PUBLICATION millrace DROP TABLE operational.customers");
    platform.sql("primary", "UPDATE operational.customers SET city = 'Unseen' WHERE customer_id = (SELECT min(customer_id) FROM operational.customers)");
    platform.sql(
        "primary",
        "UPDATE operational.loans SET updated_at = now() WHERE loan_id = (SELECT min(loan_id) FROM operational.loans)",
    );
    wait_until("capture or verify to notice", || {
        capture_state(&platform) != "streaming" || platform.run(&["verify"]).code == 1
    });
    // a restart brings the table back into the publication; what was missed is copied when asked for
    platform.down();
    platform.up(&[]);
    platform.run(&["resync", "operational.customers"]).ok();
    wait_until("the missed change", || {
        platform.sql("warehouse", "SELECT count(*) FROM staging.customers WHERE city = 'Unseen'") == "1"
    });
    platform.prove();
}

#[test]
fn truncate_and_key_changes_arrive() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    platform.sql("primary", "ALTER TABLE operational.payments DISABLE TRIGGER USER");
    platform
        .sql("primary", "UPDATE operational.payments SET payment_id = payment_id + 100000000 WHERE payment_id % 5 = 0");
    platform.prove();
    platform.sql("primary", "TRUNCATE operational.payments");
    wait_until("the truncate", || platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments") == "0");
    platform.prove();
}

#[test]
fn rows_that_change_without_a_trace_are_copied_anew() {
    let platform = Platform::init();
    platform.up(&["--sample", "--simulate", "50"]);
    let changes = [
        // other values, the same columns
        "ALTER TABLE operational.customers ALTER COLUMN city TYPE text USING upper(city)",
        "ALTER TABLE operational.loans ADD COLUMN luck float8 DEFAULT random(); ALTER TABLE operational.loans ALTER COLUMN luck DROP DEFAULT",
        "ALTER PUBLICATION millrace DROP TABLE operational.customers; \
         UPDATE operational.customers SET full_name = full_name || ' x' WHERE customer_id % 3 = 0; \
         ALTER PUBLICATION millrace ADD TABLE operational.customers",
    ];
    let copies = |table: &str| {
        let sql = format!("SELECT count(*) FROM audit.etl_runs WHERE kind = 'resync' AND tables LIKE '%{table}%'");
        platform.sql("warehouse", &sql).parse::<u64>().unwrap()
    };
    let done = |sql: &str, before: u64, table: &str| {
        wait_until(sql, || {
            copies(table) > before && platform.status()["capture"]["quarantined"] == serde_json::json!([])
        });
        platform.prove();
    };
    for sql in changes {
        let table = if sql.contains("luck") { "loans" } else { "customers" };
        let before = copies(table);
        platform.sql("primary", sql);
        done(sql, before, table);
    }
    // and while the platform is away, with servers that run
    for sql in [changes[0].replace("upper", "lower"), changes[2].replace("' x'", "' y'")] {
        let before = copies("customers");
        platform.kill_platform();
        platform.sql("a", &sql);
        platform.up(&["--simulate", "50"]);
        done(&sql, before, "customers");
    }
    // VACUUM FULL and CLUSTER move rows and change none
    let before = copies("customers") + copies("loans");
    platform.sql("primary", "VACUUM FULL operational.customers");
    platform.sql("primary", "CLUSTER operational.loans USING loans_pkey");
    platform.prove();
    assert_eq!(copies("customers") + copies("loans"), before);
}
