//! Loads: each is one transaction.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::SinkExt;
use jiff::civil::Date;
use millrace_base::{Ident, ident::Literal};
use millrace_config::pack::{TextFile, sql};
use millrace_pg::{ConnectParams, PgError, connect};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio_postgres::Transaction;

use crate::WorkloadError;

const CONNECT: Duration = Duration::from_secs(20);
const INSERTED: &str = include_str!("../sql/inserted.sql");
const CHUNK_BYTES: usize = 64 << 10;

/// What sample data is made from: the same gives the same rows.
#[derive(Debug, Clone, Copy)]
pub struct SampleOptions {
    pub scale: u32,
    pub seed: u64,
    /// The last day of the data's history.
    pub today: Date,
}

/// What a load brought in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// `schema.table` and rows, by name.
    pub tables: Vec<(String, u64)>,
    pub duration_ms: u64,
}

/// Runs the generator `scripts` in order as one transaction.
///
/// `:scale`, `:seed` and `:today` in them are replaced by literals. The role of `params` owns the tables.
///
/// # Errors
/// If the tables are not empty (the scripts' own check), or the server refuses; nothing is loaded then.
pub async fn load_sample(
    params: &ConnectParams,
    scripts: &[&TextFile],
    options: &SampleOptions,
) -> Result<Loaded, WorkloadError> {
    if scripts.is_empty() {
        return Err(WorkloadError::Absent { what: "sample data (generate/sample*.sql)" });
    }
    let seed = options.seed.cast_signed();
    let values = [
        ("scale", options.scale.to_string()),
        ("seed", format!("({seed})::bigint")),
        ("today", format!("date {}", Literal(&options.today.to_string()))),
    ];
    let mut bound = Vec::new();
    for script in scripts {
        bound.push((script.path.as_path(), bind(script, &values)?));
    }
    let began = Instant::now();
    let mut client = open(params).await?;
    let transaction = begin(client.client_mut(), params).await?;
    for (path, sql) in &bound {
        transaction.batch_execute(sql).await.map_err(|e| not_loaded(path, e))?;
    }
    finish(transaction, began, scripts[0].path.as_path()).await
}

/// `generate/<name>.toml`: files and the temporary tables that they are copied into.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    table: Vec<FileTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTable {
    name: String,
    file: String,
    /// `name type`, in the file's order.
    columns: Vec<String>,
}

/// Copies the files that `description` names from `folder` into temporary tables, then runs `script`;
/// one transaction. Files are tab-separated, without a header, in PostgreSQL's text format.
///
/// # Errors
/// If a file is absent or malformed, the tables are not empty (the script's own check), or the server
/// refuses; nothing is loaded then.
pub async fn load_files(
    params: &ConnectParams,
    description: &TextFile,
    script: &TextFile,
    folder: &Path,
) -> Result<Loaded, WorkloadError> {
    let described: Description = toml::from_str(&description.text)
        .map_err(|source| WorkloadError::BadDescription { path: description.path.clone(), source: Box::new(source) })?;
    let sql = bind(script, &[])?;
    // all of them are there before anything begins
    let mut files = Vec::new();
    for table in &described.table {
        let path = folder.join(&table.file);
        let file = tokio::fs::File::open(&path).await;
        files.push((table, file.map_err(|source| WorkloadError::Read { path: path.clone(), source })?, path));
    }
    let began = Instant::now();
    let mut client = open(params).await?;
    let transaction = begin(client.client_mut(), params).await?;
    for (table, file, path) in files {
        copy(&transaction, table, file, &path).await?;
    }
    transaction.batch_execute(&sql).await.map_err(|e| not_loaded(&script.path, e))?;
    finish(transaction, began, &script.path).await
}

async fn copy(
    transaction: &Transaction<'_>,
    table: &FileTable,
    mut file: tokio::fs::File,
    path: &Path,
) -> Result<(), WorkloadError> {
    let failed = |e: tokio_postgres::Error| not_loaded(path, e);
    let name = Ident(&table.name);
    let create = format!("CREATE TEMP TABLE {name} ({}) ON COMMIT DROP", table.columns.join(", "));
    transaction.batch_execute(&create).await.map_err(failed)?;
    let sink = transaction.copy_in(&format!("COPY {name} FROM STDIN")).await.map_err(failed)?;
    futures::pin_mut!(sink);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk).await;
        let read = read.map_err(|source| WorkloadError::Read { path: path.to_owned(), source })?;
        let Some(bytes) = chunk.get(..read).filter(|b| !b.is_empty()) else { break };
        sink.send(Bytes::copy_from_slice(bytes)).await.map_err(failed)?;
    }
    sink.finish().await.map(drop).map_err(failed)
}

/// Replaces each `:name`; an unknown one is an error.
fn bind(script: &TextFile, values: &[(&str, String)]) -> Result<String, WorkloadError> {
    let text = &script.text;
    let mut bound = String::with_capacity(text.len());
    let mut done = 0;
    for placeholder in sql::placeholders(text) {
        let Some((_, value)) = values.iter().find(|(name, _)| *name == placeholder.name) else {
            return Err(WorkloadError::UnknownParameter { path: script.path.clone(), name: placeholder.name });
        };
        bound.push_str(text.get(done..placeholder.span.start).unwrap_or_default());
        bound.push_str(value);
        done = placeholder.span.end;
    }
    bound.push_str(text.get(done..).unwrap_or_default());
    Ok(bound)
}

async fn open(params: &ConnectParams) -> Result<millrace_pg::Connection, WorkloadError> {
    connect(params, CONNECT)
        .await
        .map_err(|source| WorkloadError::Connect { address: params.address(), source: Box::new(source) })
}

async fn begin<'c>(
    client: &'c mut tokio_postgres::Client,
    params: &ConnectParams,
) -> Result<Transaction<'c>, WorkloadError> {
    let began = client.transaction().await;
    began.map_err(|e| WorkloadError::Connect { address: params.address(), source: Box::new(e.into()) })
}

async fn finish(transaction: Transaction<'_>, began: Instant, what: &Path) -> Result<Loaded, WorkloadError> {
    let failed = |e| not_loaded(what, e);
    let rows = transaction.query(INSERTED, &[]).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    let tables = rows.iter().map(|row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap_or(0))).collect();
    Ok(Loaded { tables, duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX) })
}

fn not_loaded(what: &Path, error: tokio_postgres::Error) -> WorkloadError {
    WorkloadError::Load { what: what.to_owned(), source: Box::new(PgError::from(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_become_literals() {
        let mut script =
            TextFile { path: "a.sql".into(), name: "a.sql".to_owned(), text: "SELECT :n::int, ':n' -- :n".to_owned() };
        assert_eq!(bind(&script, &[("n", "7".to_owned())]).unwrap(), "SELECT 7::int, ':n' -- :n");
        script.text = "SELECT :m".to_owned();
        let error = bind(&script, &[]).unwrap_err();
        assert_eq!(error.to_string(), "a.sql: unknown parameter `:m`");
    }
}
