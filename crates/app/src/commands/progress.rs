//! How far a long piece of work has come, on one line of a terminal.

use std::{
    io::{IsTerminal as _, Write as _},
    mem::{Discriminant, discriminant},
    sync::Mutex,
    time::{Duration, Instant},
};

use millrace_backup::Step;

use crate::{context::Context, output::bytes_text};

/// A line that is written over as the work goes on, where somebody looks.
pub(super) struct Bar {
    begun: Instant,
    told: Mutex<Told>,
    shown: bool,
}

/// When the line was written last, and when what is done now began.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    step: Option<(Discriminant<Step>, Instant)>,
}

impl Bar {
    pub(super) fn new(context: &Context) -> Self {
        let shown = std::io::stderr().is_terminal() && !context.output.is_json();
        Self { begun: Instant::now(), told: Mutex::default(), shown }
    }

    pub(super) fn tell(&self, step: Step) {
        if !self.shown {
            return;
        }
        let Ok(mut told) = self.told.lock() else { return };
        let now = Instant::now();
        let begun = match told.step {
            Some((what, begun)) if what == discriminant(&step) => begun,
            _ => now,
        };
        told.step = Some((discriminant(&step), begun));
        if told.at.is_some_and(|at| now - at < Duration::from_millis(200)) {
            return;
        }
        told.at = Some(now);
        // a terminal that is gone is no reason to stop
        let _unseen = write!(std::io::stderr(), "\r\x1b[K  {}", words(step, now - begun));
    }

    pub(super) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    pub(super) fn end(&self) {
        if self.shown {
            let _unseen = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// What a step has come to since it began. Pure.
fn words(step: Step, since: Duration) -> String {
    let many = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let plain = |what: String, done: usize, total: usize, of: &str| {
        let pace = pace(many(done), many(total), since)
            .map_or_else(String::new, |(rate, left)| format!(", {rate:.0}/s, {left:.0} s left"));
        format!("{what}{done} of {total} {of}{pace}")
    };
    match step {
        Step::Checkpoint => "waits for a checkpoint".to_owned(),
        Step::Copy { bytes, bytes_total } => {
            let pace = pace(bytes, bytes_total, since).map_or_else(String::new, |(rate, left)| {
                format!(", {:.0} MiB/s, {left:.0} s left", rate / f64::from(1 << 20))
            });
            format!("{} of {}{pace}", bytes_text(bytes), bytes_text(bytes_total))
        }
        Step::Kept { bytes } => format!("{} are there already", bytes_text(bytes)),
        Step::WaitForLog { until } => format!("waits for the log up to {until}"),
        Step::Log { segments, segments_total } => plain("log: ".to_owned(), segments, segments_total, "files"),
        Step::Verify { objects, objects_total } => plain(String::new(), objects, objects_total, "objects"),
        Step::Tables { done, total } => plain("counts rows: ".to_owned(), done, total, "tables"),
    }
}

/// How many a second, and how many seconds are left; not said at the beginning, when nobody knows.
fn pace(done: u64, total: u64, since: Duration) -> Option<(f64, f64)> {
    let seconds = since.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let (done, left) = (done as f64, total.saturating_sub(done) as f64);
    (seconds >= 0.2 && done > 0.0).then(|| (done / seconds, left * seconds / done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_once_they_are_known() {
        let after = |step, ms| words(step, Duration::from_millis(ms));
        let copy = Step::Copy { bytes: 100 << 20, bytes_total: 400 << 20 };
        assert_eq!(after(copy, 100), "100.0 MiB of 400.0 MiB");
        assert_eq!(after(copy, 2_000), "100.0 MiB of 400.0 MiB, 50 MiB/s, 6 s left");
        let verify = Step::Verify { objects: 30, objects_total: 90 };
        assert_eq!(after(verify, 3_000), "30 of 90 objects, 10/s, 6 s left");
        assert_eq!(after(Step::Log { segments: 0, segments_total: 9 }, 3_000), "log: 0 of 9 files");
    }
}
