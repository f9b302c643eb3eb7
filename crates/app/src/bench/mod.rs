//! `millrace bench`: measures the platform beside the tools that it replaces, in one run on throw-away servers.
//!
//! Invariants: nothing of an existing platform is touched; ours and the peer take turns in the same run;
//! what both sides hold afterwards is compared, and a difference is a failure, not a figure; a loss is
//! printed as a loss; servers and files go away at the end, after an error and after Ctrl-C too.
//! Non-goals: absolute figures (they are the machine's: read ratios), load from other hosts.

mod apply;
mod backup;
mod batches;
mod capture;
mod changes;
mod copy;
mod failover;
mod figure;
mod freshness;
mod lab;
mod native;
mod ours;
mod peer_star;
mod pgbench;
mod proxy;
mod reports;
mod rows;
mod source;
mod usage;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};

use self::{figure::Figure, lab::Lab};
use crate::{
    cli::{Bench, BenchName},
    output::Output,
};

/// Rounds of everything that is repeated; medians are shown.
const ROUNDS: usize = 3;

/// Runs one benchmark and prints its figures.
///
/// # Errors
/// If a server cannot be made, either side fails, or the two sides do not end with the same rows.
pub(crate) async fn run(options: &Bench, output: Output) -> anyhow::Result<()> {
    let mut lab = Lab::new(output)?;
    // nothing that the dropped work leaves behind survives the lab
    let measured = tokio::select! {
        measured = measure(&mut lab, options) => measured,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let versions = lab.versions.join(" · ");
    let closed = lab.close().await;
    let Measured { figures, differences } = measured?;
    closed?;
    figure::print(&figures, &versions, output)?;
    if !differences.is_empty() {
        bail!("what was found is wrong:\n  {}", differences.join("\n  "));
    }
    Ok(())
}

/// What a benchmark found.
#[derive(Debug, Default)]
struct Measured {
    figures: Vec<Figure>,
    /// Results that must not be: not the same on both sides, or not what is promised whatever the time it takes.
    differences: Vec<String>,
}

async fn measure(lab: &mut Lab, options: &Bench) -> anyhow::Result<Measured> {
    match options.name {
        BenchName::Backup => Box::pin(backup::measure(lab, options.scale)).await,
        BenchName::Capture => Box::pin(capture::measure(lab, options.rows)).await,
        BenchName::Failover => Box::pin(failover::measure(lab, &options.failover)).await,
        BenchName::Proxy => Box::pin(proxy::measure(lab)).await,
        BenchName::Reports => Box::pin(reports::measure(lab, options.rows)).await,
    }
}

/// Ctrl-C or a polite kill.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
