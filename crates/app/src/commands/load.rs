//! `load` and `simulate`: sample data, real files, live customers.

use std::{path::Path, time::Duration};

use anyhow::anyhow;
use millrace_base::{Clock, SystemClock};
use millrace_config::pack::TextFile;
use millrace_pg::ConnectParams;
use millrace_workload::{Loaded, Progress, SampleOptions, Simulation, WorkloadError};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{Load, Simulate},
    context::Context,
    explain::{Explained, explain},
    output::table,
};

/// The role as which simulated customers act: the application's.
const CUSTOMER_ROLE: &str = "app_user";

impl<T> Explained<T> for Result<T, WorkloadError> {
    fn explained(self) -> anyhow::Result<T> {
        self.map_err(|error| explain(&error, error.hint()))
    }
}

pub(crate) async fn run(context: &Context, options: &Load) -> anyhow::Result<u8> {
    let primary = context.primary()?;
    let loaded = match options {
        Load::Sample { scale, seed } => sample(context, &primary, *scale, *seed).await.explained()?,
        Load::Berka { from } => files(context, &primary, "berka", from).await?,
    };
    let output = context.output;
    output.json(&loaded)?;
    let rows: Vec<Vec<String>> =
        loaded.tables.iter().map(|(table, rows)| vec![table.clone(), rows.to_string()]).collect();
    output.line(table(&["table", "rows"], &rows));
    output.line(format!("loaded in {} ms", loaded.duration_ms));
    Ok(0)
}

/// Runs the pack's generator up to today.
pub(crate) async fn sample(
    context: &Context,
    primary: &ConnectParams,
    scale: u32,
    seed: u64,
) -> Result<Loaded, WorkloadError> {
    let scripts: Vec<&TextFile> = context.pack.generate.iter().filter(|file| file.name.starts_with("sample")).collect();
    let today = SystemClock::new().wall().to_timestamp().unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC).date();
    let owner = primary.to_database(&context.pack.database);
    millrace_workload::load_sample(&owner, &scripts, &SampleOptions { scale, seed, today }).await
}

/// As [`sample`] at scale 1, unless the database has data already; whether it was loaded.
pub(crate) async fn sample_if_empty(context: &Context, primary: &ConnectParams) -> anyhow::Result<bool> {
    /// `object_not_in_prerequisite_state`: the generator's own word for "not empty".
    const NOT_EMPTY: &str = "55000";
    match sample(context, primary, 1, 1).await {
        Err(WorkloadError::Load { source, .. }) if source.sqlstate() == Some(NOT_EMPTY) => Ok(false),
        loaded => loaded.explained().map(|_| true),
    }
}

async fn files(context: &Context, primary: &ConnectParams, name: &str, folder: &Path) -> anyhow::Result<Loaded> {
    let file = |ending: &str| {
        let wanted = format!("{name}.{ending}");
        context.pack.generate.iter().find(|file| file.name == wanted).ok_or_else(|| {
            anyhow!(
                "pack {} has no generate/{wanted}\n  hint: only packs that map these files can load them",
                context.pack.name
            )
        })
    };
    let owner = primary.to_database(&context.pack.database);
    millrace_workload::load_files(&owner, file("toml")?, file("sql")?, folder).await.explained()
}

pub(crate) async fn simulate(context: &Context, options: &Simulate) -> anyhow::Result<u8> {
    let output = context.output;
    let token = CancellationToken::new();
    let mut simulation = std::pin::pin!(act(context, options.rate, options.seed, token.clone(), |progress| {
        let total = progress.total();
        output.note(format!(
            "{} done, {} idle, {} refused, {} in doubt, {} missed",
            total.done, total.idle, total.refused, total.in_doubt, progress.missed
        ));
    }));
    let limit = async {
        match options.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let progress = tokio::select! {
        ended = &mut simulation => ended?,
        _ = tokio::signal::ctrl_c() => { token.cancel(); simulation.await? }
        () = limit => { token.cancel(); simulation.await? }
    };
    output.json(&progress)?;
    let rows: Vec<Vec<String>> = progress
        .operations
        .iter()
        .map(|(name, counts)| {
            vec![
                name.clone(),
                counts.done.to_string(),
                counts.idle.to_string(),
                counts.refused.to_string(),
                counts.in_doubt.to_string(),
            ]
        })
        .collect();
    output.line(table(&["operation", "done", "idle", "refused", "in doubt"], &rows));
    Ok(0)
}

/// Customers act on the primary until the token is cancelled.
pub(crate) async fn act(
    context: &Context,
    rate: f64,
    seed: u64,
    token: CancellationToken,
    on_progress: impl FnMut(&Progress),
) -> anyhow::Result<Progress> {
    // as an application would: by the proxy
    let params = ConnectParams {
        application_name: "millrace simulate".into(),
        host: context.proxy_host(),
        port: context.config.proxy.port,
        ..context.as_role(CUSTOMER_ROLE)?
    };
    millrace_workload::simulate(&params, &context.pack.simulate, Simulation::new(rate, seed), token, on_progress)
        .await
        .explained()
}
