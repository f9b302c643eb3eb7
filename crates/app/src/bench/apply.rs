//! Steady apply: the same backlog of small transactions, taken in by ours and by a native subscription.

use std::time::Instant;

use millrace_pg::Connection;

use super::{
    Measured, ROUNDS,
    changes::Changes,
    figure::{Figure, median},
    lab::Lab,
    native::Target,
    ours::Ours,
    source::{Source, summary},
    usage::own_cpu_s,
};

/// Both sides, with equal data, and neither of them running.
#[derive(Debug)]
pub(crate) struct Sides<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) source: &'a Source,
    pub(crate) publisher: &'a Connection,
    pub(crate) ours: &'a Ours,
    pub(crate) target: &'a Target,
    pub(crate) changes: &'a Changes,
}

impl Sides<'_> {
    /// Rows a second until caught up, in rounds that begin with either.
    pub(crate) async fn apply(&self, payments: u64, measured: &mut Measured) -> anyhow::Result<()> {
        // a fifth of the largest table changes in each round
        let wanted = (payments / 5).max(1_000);
        let (mut our_rates, mut their_rates, mut our_cpu, mut backlog) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for round in 0..ROUNDS {
            let changed = self.changes.backlog(wanted).await?;
            let position = self.source.position(self.publisher).await?;
            self.changes.mark(u64::try_from(round)?).await?;
            backlog += changed;
            let rows = f64::from(u32::try_from(changed)?);
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    let cpu = own_cpu_s();
                    let start = Instant::now();
                    let mut capture = self.ours.capture(self.lab, self.source)?;
                    capture.applied_past(position).await?;
                    let seconds = start.elapsed().as_secs_f64();
                    our_cpu.push((own_cpu_s() - cpu) / rows * 100_000.0);
                    capture.stop().await?;
                    self.lab.note(format!("apply, round {}, ours: {changed} rows in {seconds:.2} s", round + 1));
                    our_rates.push(rows / seconds);
                } else {
                    let start = Instant::now();
                    self.target.enable().await?;
                    self.target.applied_past(position).await?;
                    let seconds = start.elapsed().as_secs_f64();
                    self.target.disable(self.publisher).await?;
                    self.lab.note(format!("apply, round {}, native: {changed} rows in {seconds:.2} s", round + 1));
                    their_rates.push(rows / seconds);
                }
            }
        }
        self.compare("apply", measured).await?;
        let settings = format!(
            "apply of {} changed rows in transactions of about 10 (6 payments in, 3 loans changed, 1 payment out), median of {ROUNDS}, in turns; \
             ours: batches as configured ({} s), processor time of our process {:.2} s for 100,000 rows; native: defaults (one apply worker, synchronous_commit off)",
            backlog / u64::try_from(ROUNDS)?,
            self.lab.context.config.capture.batch_interval.as_secs_f64(),
            median(our_cpu),
        );
        measured.figures.push(Figure {
            what: "steady apply".to_owned(),
            unit: "rows/s",
            ours: median(our_rates),
            peer: Some(median(their_rates)),
            peer_name: "native subscription".to_owned(),
            higher_is_better: true,
            settings,
        });
        Ok(())
    }

    /// Both sides hold what the publisher holds.
    pub(crate) async fn compare(&self, when: &str, measured: &mut Measured) -> anyhow::Result<()> {
        let truth = summary(self.publisher).await?;
        for (side, held) in [("ours", self.ours.summary().await?), ("native", summary(&self.target.client).await?)] {
            if held != truth {
                measured.differences.push(format!("{when}, {side}: {held:?} instead of {truth:?}"));
            }
        }
        Ok(())
    }
}
