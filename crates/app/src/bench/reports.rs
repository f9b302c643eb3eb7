//! `millrace bench reports`: the dashboard's reports beside the same SQL on PostgreSQL, the time of one
//! batch of scattered changes at that size and at three times it, and the process's memory.
//!
//! The rows are made up ([`super::rows`]) and go through the sink, as capture's would: the warehouse has
//! raw history, staging and every model. PostgreSQL gets the finished star.

use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use millrace_contract::{Query, Reader, Value, report::Report};

use super::{
    Measured, ROUNDS, batches, capture,
    figure::{Figure, median},
    lab::Lab,
    ours::Ours,
    peer_star::{self, PeerStar, same},
    rows::MadeUp,
    usage,
};
use crate::explain::Explained;

/// What the platform promises at 10 million payments.
const BATCH_MS_MAX: f64 = 150.0;
const MEMORY_MIB_MAX: f64 = 1536.0;
/// Rows of a report that are compared.
const REPORT_ROWS_MAX: usize = 1_000_000;

pub(crate) async fn measure(lab: &mut Lab, payments: u64) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let once = Sized::make(lab, payments).await?;
    lab.versions.push(format!("DuckDB {}", capture::duckdb_version(&once.ours).await?));
    let star = PeerStar::make(lab, &once.ours).await?;
    usage::forget_peak();
    reports(lab, &once, &star, &mut measured).await?;
    drop(star);

    let at_once = once.batches(lab).await?;
    let peak = usage::peak_mib();
    once.ours.remove()?;
    let thrice = Sized::make(lab, payments.saturating_mul(3)).await?;
    usage::forget_peak();
    let at_thrice = thrice.batches(lab).await?;
    let peak_thrice = usage::peak_mib();
    thrice.ours.remove()?;

    let warehouse = &lab.context.config.warehouse;
    let engine =
        format!("engine limited to {} MiB and {} threads", warehouse.memory_limit_bytes >> 20, warehouse.threads);
    let batch = format!(
        "{}; median of {}; raw, staging, dimensions, facts and watermark in one transaction; {engine}",
        batches::WHAT,
        at_once.len()
    );
    let (at_once, at_thrice) = (median(at_once), median(at_thrice));
    let mut limit = |what: String, unit, ours, limit: f64, settings: &str| {
        measured.figures.push(Figure {
            what,
            unit,
            ours,
            peer: None,
            peer_name: format!("limit: {limit:.0} {unit}"),
            higher_is_better: false,
            settings: settings.to_owned(),
        });
    };
    limit(format!("batch of 1,000 changes at {payments} payments"), "ms", at_once, BATCH_MS_MAX, &batch);
    limit(format!("peak memory, reports and batches at {payments} payments"), "MiB", peak, MEMORY_MIB_MAX, &engine);
    limit(
        format!("peak memory, batches at {} payments", thrice.made.payments),
        "MiB",
        peak_thrice,
        MEMORY_MIB_MAX,
        &engine,
    );
    measured.figures.push(Figure {
        what: format!("batch of 1,000 changes at {} payments", thrice.made.payments),
        unit: "ms",
        ours: at_thrice,
        peer: Some(at_once),
        peer_name: format!("the same at {payments} payments"),
        higher_is_better: false,
        settings: batch,
    });
    Ok(measured)
}

/// A filled warehouse.
struct Sized {
    ours: Ours,
    made: MadeUp,
}

impl Sized {
    async fn make(lab: &Lab, payments: u64) -> anyhow::Result<Self> {
        lab.note(format!("makes up {payments} payments and what belongs to them"));
        usage::forget_peak();
        let start = Instant::now();
        let ours = Ours::open(lab, &format!("warehouse-{payments}"))?;
        let made = MadeUp::new(payments);
        let mut sink = ours.sink()?;
        made.copy_into(&mut sink, |line| lab.note(line)).await?;
        sink.close().await;
        let (seconds, peak) = (start.elapsed().as_secs_f64(), usage::peak_mib());
        lab.note(format!("  in the star after {seconds:.1} s, peak memory {peak:.0} MiB"));
        Ok(Self { ours, made })
    }

    async fn batches(&self, lab: &Lab) -> anyhow::Result<Vec<f64>> {
        let mut sink = self.ours.sink()?;
        let times = batches::measure(&self.made, &mut sink).await?;
        sink.close().await;
        let shown: Vec<String> = times.iter().map(|ms| format!("{ms:.0}")).collect();
        lab.note(format!("batches at {} payments, ms: {}", self.made.payments, shown.join(" ")));
        Ok(times)
    }
}

/// Every report of the dashboard opened first, once.
fn of_dashboard(lab: &Lab) -> anyhow::Result<Vec<Arc<Report>>> {
    let pack = &lab.context.pack;
    let dashboard = pack.catalog.home().context("the pack has no dashboard")?;
    let mut reports: Vec<Arc<Report>> = Vec::new();
    for report in dashboard.tiles.iter().filter_map(|tile| pack.catalog.report(&tile.report)) {
        if !reports.iter().any(|known| known.name == report.name) {
            reports.push(report.clone());
        }
    }
    Ok(reports)
}

async fn run(ours: &Ours, report: &Report) -> anyhow::Result<Vec<Vec<String>>> {
    let query = Query::new(report.sql.clone()).with(vec![Value::Null; report.params.len()]);
    let set = ours.reader.query(query).await.explained();
    let set = set
        .with_context(|| format!("report {} in the warehouse", report.name))?
        .collect(REPORT_ROWS_MAX)
        .await
        .explained()?;
    Ok(set.rows.iter().map(|row| row.iter().map(|value| value.to_text().unwrap_or_default()).collect()).collect())
}

async fn reports(lab: &Lab, once: &Sized, star: &PeerStar, measured: &mut Measured) -> anyhow::Result<()> {
    let reports = of_dashboard(lab)?;
    let mut times = vec![(Vec::new(), Vec::new()); reports.len()];
    // round 0 warms both sides' caches, compares the results and is not counted
    for round in 0..=ROUNDS {
        for (report, (ours, theirs)) in reports.iter().zip(&mut times) {
            let start = Instant::now();
            let our_rows = run(&once.ours, report).await?;
            let our_time = start.elapsed();
            let start = Instant::now();
            let their_rows = star.run(report).await?;
            let their_time = start.elapsed();
            if round > 0 {
                ours.push(our_time.as_secs_f64() * 1000.0);
                theirs.push(their_time.as_secs_f64() * 1000.0);
            } else if !same(&our_rows, &their_rows) {
                measured.differences.push(format!(
                    "report {}: {}",
                    report.name,
                    first_difference(&our_rows, &their_rows)
                ));
            }
        }
        lab.note(format!("reports: round {round} of {ROUNDS}"));
    }
    let settings: Vec<String> = peer_star::SETTINGS.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let settings = format!(
        "reports of the default dashboard at {} payments with null parameters, median of {ROUNDS} in turns after one warming round, \
         no result cache; PostgreSQL: the same star, primary keys, indexes on the facts' dimension keys and dates, VACUUM FREEZE ANALYZE, \
         jit default, {}",
        once.made.payments,
        settings.join(", ")
    );
    let mut figure = |what: String, ours, peer| {
        let peer_name = "same SQL on PostgreSQL".to_owned();
        measured.figures.push(Figure {
            what,
            unit: "ms",
            ours,
            peer: Some(peer),
            peer_name,
            higher_is_better: false,
            settings: settings.clone(),
        });
    };
    let (mut our_total, mut their_total) = (0.0, 0.0);
    for (report, (ours, theirs)) in reports.iter().zip(times) {
        let (ours, theirs) = (median(ours), median(theirs));
        our_total += ours;
        their_total += theirs;
        figure(format!("report {}", report.name), ours, theirs);
    }
    figure("all reports together".to_owned(), our_total, their_total);
    Ok(())
}

fn first_difference(ours: &[Vec<String>], theirs: &[Vec<String>]) -> String {
    let differs = ours.iter().zip(theirs).find(|(a, b)| !same(std::slice::from_ref(*a), std::slice::from_ref(*b)));
    match differs {
        // generated data, so its values may be shown
        Some((a, b)) => format!("{} and {} rows; {a:?} against {b:?}", ours.len(), theirs.len()),
        None => format!("{} rows against {}", ours.len(), theirs.len()),
    }
}
