//! The pack's models against the source and the warehouse: which cannot be built, and what that means.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_capture::CaptureError;
use millrace_contract::TableName;
use millrace_model::{Change, ChangeKind, Models, Source};
use millrace_pg::Connection;
use millrace_warehouse::{Built, HeldModel, Kept, WriterHandle};

use crate::explain::chain;

/// What the source's catalog says of the models' tables.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// Models that cannot be built from the source as it is, with reasons.
    pub(crate) unfit: BTreeMap<String, String>,
    /// The models' tables that can be captured.
    pub(crate) tables: Vec<TableName>,
}

pub(crate) fn table(source: &Source) -> TableName {
    TableName::new(source.schema.clone(), source.table.clone())
}

/// Looks every table and column of the models up in the source.
pub(crate) async fn fit(client: &Connection, models: &Models) -> Result<Fit, CaptureError> {
    let tables: Vec<TableName> = models.sources().iter().map(table).collect();
    let broken = millrace_capture::unfit(client, &tables).await?;
    let columns = millrace_capture::columns(client, &tables).await?;
    let mut unfit = BTreeMap::new();
    for model in models.iter() {
        let reason = model.sources().into_iter().find_map(|source| {
            if let Some(error) = broken.get(&table(source)) {
                return Some(format!("{} ({})", chain(error), error.hint()));
            }
            let has: Option<&BTreeSet<String>> = columns.get(&table(source));
            let wants = model.columns_of(source);
            let absent = wants.iter().find(|column| !has.is_some_and(|has| has.contains(*column)))?;
            Some(format!("{source} has no column {absent} that can be captured"))
        });
        if let Some(reason) = reason {
            unfit.insert(model.name().to_owned(), reason);
        }
    }
    Ok(Fit { unfit, tables: tables.into_iter().filter(|table| !broken.contains_key(table)).collect() })
}

/// What is to be captured, and what of it copied anew.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) tables: Vec<TableName>,
    /// They have columns that models need and the warehouse lacks.
    pub(crate) lacking: Vec<TableName>,
}

/// Builds the models at a start, once the source is as the pack wants it. What cannot be built is held, and a
/// warehouse that cannot build at all now goes on with what it has.
pub(crate) async fn build(
    client: &Connection,
    writer: &WriterHandle,
    models: &Arc<Models>,
    say: impl Fn(String),
) -> Result<Wanted, CaptureError> {
    let Fit { unfit, tables } = fit(client, models).await?;
    let Built { held, lacking, .. } = match writer.build(models.clone(), unfit).await {
        Ok(built) => built,
        Err(error) => {
            tracing::error!(error = %chain(&error), hint = error.hint(), "the models cannot be built now");
            say(format!("  models cannot be built now: {}", chain(&error)));
            Built { held: writer.in_force().held, ..Built::default() }
        }
    };
    for model in &held {
        say(format!("  model {} is not built as declared: {}", model.name, model.reason));
    }
    // what goes on as it was built may need other tables than what is declared
    let mut wanted: BTreeSet<TableName> = tables.into_iter().collect();
    let before: Vec<TableName> = writer.in_force().sources.iter().map(table).collect();
    let gone = millrace_capture::unfit(client, &before).await?;
    wanted.extend(before.into_iter().filter(|table| !gone.contains_key(table)));
    Ok(Wanted { tables: wanted.into_iter().collect(), lacking: lacking.iter().map(table).collect() })
}

/// One line for a held model.
pub(crate) fn sentence(model: &HeldModel) -> String {
    format!("cannot build {}: {}; {}", model.name, model.reason, state(model))
}

/// What becomes of a held model.
pub(crate) fn state(model: &HeldModel) -> &'static str {
    match model.kept {
        Kept::AsBuilt => "it is kept up to date as it was built before",
        Kept::Stale => "it is no longer kept up to date",
        Kept::Nothing => "it does not exist",
    }
}

/// One line of a plan; nothing about what stays as it is.
pub(crate) fn planned(change: &Change) -> Option<String> {
    let verb = match change.kind {
        ChangeKind::Create => "create",
        ChangeKind::Rebuild => "rebuild",
        ChangeKind::Drop => "drop",
        ChangeKind::Unchanged => return None,
    };
    let reasons = if change.reasons.is_empty() { String::new() } else { format!(": {}", change.reasons.join("; ")) };
    Some(format!("{verb} {}{reasons}", change.model))
}
