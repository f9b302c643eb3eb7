//! Freshness: from a commit on the publisher until a reader sees it, under a steady load.
//!
//! A marker transaction every 100 ms changes one customer. Ours is seen when a reader's snapshot of the
//! dimension `dim_customer` shows it, which raw history, staging, facts and watermark of the batch share;
//! the native one when a query on the subscriber shows it. Both are looked at every 5 ms.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    Measured,
    apply::Sides,
    changes::Markers,
    figure::{Figure, percentile},
};

const ROWS_PER_SECOND: u32 = 2_000;
const SECONDS: u32 = 30;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A marker that is not seen by then never is.
const SEEN_MAX: Duration = Duration::from_secs(60);
/// Beyond the numbers that the backlogs used.
const FIRST_OF_OURS: u64 = 1_000;
const FIRST_OF_THEIRS: u64 = 1_000_000;

pub(crate) async fn measure(sides: &Sides<'_>, measured: &mut Measured) -> anyhow::Result<()> {
    sides.lab.note(format!("freshness: {ROWS_PER_SECOND} changed rows a second for {SECONDS} s on each side"));
    let position = sides.source.position(sides.publisher).await?;
    sides.changes.mark(FIRST_OF_OURS - 1).await?;
    let mut capture = sides.ours.capture(sides.lab, sides.source)?;
    capture.applied_past(position).await?;
    let (mut ours, our_rate) = under_load(sides, FIRST_OF_OURS, async || {
        let rows = sides.ours.rows("select phone from dim_customer where customer_id = 1 and is_current").await?;
        rows.into_iter().flatten().next().context("the marked customer is not in the dimension")
    })
    .await?;
    capture.stop().await?;

    let position = sides.source.position(sides.publisher).await?;
    sides.changes.mark(FIRST_OF_THEIRS - 1).await?;
    sides.target.enable().await?;
    sides.target.applied_past(position).await?;
    let (mut theirs, their_rate) = under_load(sides, FIRST_OF_THEIRS, async || {
        let row =
            sides.target.client.query_one("SELECT phone FROM operational.customers WHERE customer_id = 1", &[]).await?;
        Ok(row.try_get(0)?)
    })
    .await?;
    sides.target.disable(sides.publisher).await?;
    sides.lab.note(format!(
        "freshness: {our_rate:.0} rows/s beside ours, {their_rate:.0} rows/s beside the native subscription"
    ));

    let settings = format!(
        "freshness over {SECONDS} s, {} and {} markers, at {our_rate:.0} rows/s (ours) and {their_rate:.0} rows/s (native), one after the other; \
         ours in batches of {} s; native applies each transaction as it comes, into plain tables",
        ours.len(),
        theirs.len(),
        sides.lab.context.config.capture.batch_interval.as_secs_f64(),
    );
    for (what, percent) in [("freshness, median", 50.0), ("freshness, 99th percentile", 99.0)] {
        measured.figures.push(Figure {
            what: what.to_owned(),
            unit: "ms",
            ours: percentile(&mut ours, percent),
            peer: Some(percentile(&mut theirs, percent)),
            peer_name: "native subscription".to_owned(),
            higher_is_better: false,
            settings: settings.clone(),
        });
    }
    Ok(())
}

/// Milliseconds until each marker was seen, and the rows changed in a second meanwhile.
async fn under_load(
    sides: &Sides<'_>,
    first: u64,
    look: impl AsyncFn() -> anyhow::Result<String>,
) -> anyhow::Result<(Vec<f64>, f64)> {
    let committed: Mutex<Markers> = Mutex::default();
    let last = first + u64::from(SECONDS * 10) - 1;
    let load = sides.changes.load(ROWS_PER_SECOND, SECONDS, first, |number, at| {
        committed.lock().unwrap_or_else(PoisonError::into_inner).push((number, at));
    });
    let watch = async {
        let mut seen: Vec<f64> = Vec::new();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let deadline = Instant::now() + Duration::from_secs(u64::from(SECONDS)) + SEEN_MAX;
        loop {
            ticks.tick().await;
            let text = look().await?;
            let now = Instant::now();
            let number: u64 = text.strip_prefix("marker ").and_then(|n| n.parse().ok()).unwrap_or(0);
            committed.lock().unwrap_or_else(PoisonError::into_inner).retain(|(marker, at)| {
                let waits = *marker > number;
                if !waits {
                    seen.push(now.duration_since(*at).as_secs_f64() * 1000.0);
                }
                waits
            });
            if number >= last && committed.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                return Ok(seen);
            }
            if now > deadline {
                bail!("marker {last} was not seen within {} s; marker {number} was", SEEN_MAX.as_secs());
            }
        }
    };
    let (rate, seen) = tokio::try_join!(load, watch)?;
    Ok((seen, rate))
}
