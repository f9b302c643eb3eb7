//! Models that cannot be built, and packs that were edited.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::harness::{Platform, wait_until};

fn model_file(platform: &Platform, name: &str) -> PathBuf {
    platform.dir().join("pack/models").join(name)
}

/// Replaces a text of a model file.
fn edit(platform: &Platform, name: &str, from: &str, to: &str) {
    let path = model_file(platform, name);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "`{from}` is not in {name}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn held(status: &Value) -> Vec<String> {
    let findings = status["findings"].as_array().unwrap().iter();
    findings.filter_map(|f| f["subject"].as_str()?.strip_prefix("model ")).map(str::to_owned).collect()
}

fn payments(platform: &Platform) -> u64 {
    platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_payments").parse().unwrap()
}

#[test]
fn a_model_that_cannot_be_built_keeps_nothing_else_from_starting() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    let columns = platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_loans");
    platform.down();

    // one needs a column that a pending migration adds, one fails on the values, one needs a table that is not there
    fs::write(
        platform.dir().join("pack/migrations/V5__fee.sql"),
        "ALTER TABLE operational.payments ADD COLUMN fee numeric(8,2);\n",
    )
    .unwrap();
    edit(&platform, "facts.toml", "payment_amount = \"amount\"", "payment_amount = \"amount\"\nfee = \"fee\"");
    edit(
        &platform,
        "facts.toml",
        "principal_amount = \"amount\"",
        "principal_amount = \"amount\"\nofficer = \"loan_officer::bigint\"",
    );
    let more = "\n[[dimension]]\nname = \"dim_branch\"\ntype = 1\nsource = \"operational.branches\"\nkey = [\"branch_code\"]\nsurrogate = \"branch_sk\"\n[dimension.attributes]\ncity = \"city\"\n";
    let text = fs::read_to_string(model_file(&platform, "dimensions.toml")).unwrap();
    fs::write(model_file(&platform, "dimensions.toml"), text + more).unwrap();

    let said = platform.up(&["--simulate", "50"]);
    assert!(said.contains("V5__fee.sql") && said.contains("model fact_loans"), "{said}");
    // the column comes with a copy, and the fact that waited for it by itself
    wait_until("the fact with the new column", || {
        platform.try_sql("warehouse", "SELECT count(fee) FROM warehouse.fact_payments").code == 0
    });
    wait_until("the findings", || held(&platform.status()) == ["dim_branch", "fact_loans"]);
    let status = platform.run(&["status"]).ok();
    assert!(status.contains("operational.branches does not exist") && status.contains("model build"), "{status}");
    assert!(status.contains("it is kept up to date as it was built before"), "{status}");
    platform.run(&["health"]).failed(1, "");
    let plan = platform.run(&["model", "plan"]);
    assert!(plan.code == 1 && plan.stdout.contains("cannot build fact_loans: "), "{plan:?}");
    let build = platform.run(&["model", "build"]);
    assert!(build.code == 1 && build.stdout.contains("cannot build dim_branch: "), "{build:?}");

    // everything goes on, the held fact as it was built
    let before = payments(&platform);
    wait_until("new payments", || payments(&platform) > before);
    assert!(platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_loans") >= columns);
    assert_eq!(platform.try_sql("warehouse", "SELECT officer FROM warehouse.fact_loans LIMIT 1").code, 1);
    platform.prove();

    edit(&platform, "facts.toml", "loan_officer::bigint", "loan_officer");
    let text = fs::read_to_string(model_file(&platform, "dimensions.toml")).unwrap();
    fs::write(model_file(&platform, "dimensions.toml"), text.replace(more, "")).unwrap();
    platform.run(&["model", "build"]).ok();
    assert_eq!(held(&platform.status()), [""; 0]);
    platform.sql("warehouse", "SELECT officer FROM warehouse.fact_loans LIMIT 1");
    platform.prove();
}

#[test]
fn a_first_start_with_a_model_that_cannot_be_built() {
    let platform = Platform::init();
    edit(
        &platform,
        "facts.toml",
        "principal_amount = \"amount\"",
        "principal_amount = \"amount\"\nofficer = \"loan_officer::bigint\"",
    );
    let said = platform.up(&["--sample"]);
    assert!(!said.contains("capture stopped"), "{said}");
    assert_eq!(held(&platform.status()), ["fact_loans"]);
    assert!(payments(&platform) > 90_000);
    edit(&platform, "facts.toml", "loan_officer::bigint", "loan_officer");
    platform.run(&["model", "build"]).ok();
    assert_eq!(held(&platform.status()), [""; 0]);
    platform.prove();
}

#[test]
fn what_is_built_is_compared_and_an_edited_pack_is_mentioned() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    let clean: Value = platform.run(&["prove", "--json"]).json();
    assert_eq!(clean["notes"], serde_json::json!([]));
    edit(&platform, "facts.toml", "payment_amount = \"amount\"", "payment_amount = \"amount + 1\"");
    let proof = platform.run(&["prove", "--json"]).json();
    let notes = proof["notes"].to_string();
    assert!(notes.contains("differs from what is built") && notes.contains("fact_payments"), "{notes}");
    let models = |proof: &Value| proof["models"].as_array().unwrap().len();
    assert_eq!(models(&proof), models(&clean));
    let sum = "SELECT sum(payment_amount) FROM warehouse.fact_payments";
    let before = platform.sql("warehouse", sum);
    let rebuilt = platform.run(&["model", "rebuild"]).ok();
    assert!(rebuilt.contains("rebuilt fact_payments") && rebuilt.contains("differs from what is built"), "{rebuilt}");
    assert_eq!(platform.sql("warehouse", sum), before);
    fs::write(model_file(&platform, "facts.toml"), "not toml").unwrap();
    platform.prove();
}
