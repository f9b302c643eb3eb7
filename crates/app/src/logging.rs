//! Where log events go: a file of lines, and from WARN on the terminal of a foreground platform too.

use std::{fs::OpenOptions, path::Path, sync::Mutex};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// For the platform process. `filter` as in `info,millrace_capture=debug`.
pub(crate) fn to_file(path: &Path, filter: Option<&str>, also_terminal: bool) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write the log {}", path.display()))?;
    let filter = EnvFilter::try_new(filter.unwrap_or("info"))
        .context("MILLRACE_LOG is not a log filter; one looks like info,millrace_capture=debug")?;
    let to_file = fmt::layer().with_ansi(false).with_writer(Mutex::new(file)).with_filter(filter);
    let to_terminal = also_terminal.then(|| {
        fmt::layer().with_target(false).without_time().with_writer(std::io::stderr).with_filter(EnvFilter::new("warn"))
    });
    tracing_subscriber::registry().with(to_file).with(to_terminal).try_init().context("logging was set up already")
}

/// For every other command: warnings to the error stream.
pub(crate) fn to_terminal(filter: Option<&str>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter.unwrap_or("error"))
        .context("MILLRACE_LOG is not a log filter; one looks like info,millrace_capture=debug")?;
    tracing_subscriber::registry()
        .with(fmt::layer().with_target(false).without_time().with_writer(std::io::stderr).with_filter(filter))
        .try_init()
        .context("logging was set up already")
}
