//! The real PKDD'99 Czech bank files, where they are at hand.

use millrace_testkit::data_set;

use crate::harness::Platform;

#[test]
fn the_real_bank_from_file_to_star() {
    let Some(files) = data_set("berka", "fin_loan.tsv") else { return };
    let platform = Platform::init();
    platform.up(&[]);
    platform.run(&["load", "berka", "--from", files.to_str().unwrap()]).ok();
    platform.prove();

    let loans = std::fs::read_to_string(files.join("fin_loan.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = loans.lines().map(|line| line.split('\t').collect()).collect();
    let cents = |text: &str| text.replace('.', "").parse::<i64>().unwrap();
    let amount: i64 = rows.iter().map(|row| cents(row[3])).sum();
    let finished = rows.iter().filter(|row| row[6] == "A").count();
    assert_eq!(rows.len(), 682);

    let star = platform.sql(
        "warehouse",
        "SELECT count(*), CAST(sum(principal_amount) * 100 AS bigint), sum(CASE WHEN is_repaid THEN 1 ELSE 0 END) FROM warehouse.fact_loans",
    );
    assert_eq!(star, format!("682|{amount}|{finished}"));
    // a loan that was paid back was paid back whole
    let open = platform.sql("warehouse", "SELECT count(*) FROM warehouse.fact_loans WHERE is_repaid AND (outstanding_balance <> 0 OR total_paid < principal_amount)");
    assert_eq!(open, "0");
    // a second load changes nothing
    platform.run(&["load", "berka", "--from", files.to_str().unwrap()]).failed(1, "");
    assert_eq!(platform.sql("primary", "SELECT count(*) FROM operational.loans"), "682");
}
