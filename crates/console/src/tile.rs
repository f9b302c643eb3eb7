//! One report run for the reader's filters: what a tile, a page and the JSON API show.

use std::time::Duration;

use millrace_contract::{
    Query, QueryError, Value,
    param::BadParam,
    query::{Freshness, ResultColumn, RowSet},
    report::{ChartKind, Format, Report},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Console, format,
    params::{Filters, query_of},
};

/// Rows of a tile or a page; the CSV has them all.
pub(crate) const ROWS_MAX: usize = 1000;

const TILE_DEADLINE: Duration = Duration::from_secs(20);

/// Why a report shows nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TileError {
    #[error(transparent)]
    Param(#[from] BadParam),
    #[error("the report failed: {}", .0.message)]
    Query(QueryError),
    #[error("the report did not finish within {} s", .0.as_secs())]
    Deadline(Duration),
}

impl TileError {
    /// What the reader can do.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Param(_) => "change the filter above, or clear it".to_owned(),
            Self::Query(error) => error
                .hint
                .clone()
                .unwrap_or_else(|| format!("try again; the warehouse says SQLSTATE {}", error.sqlstate)),
            Self::Deadline(_) => "narrow the filters, or try again".to_owned(),
        }
    }
}

/// A column as pages need it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TileColumn {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) format: Format,
    pub(crate) number: bool,
}

/// How fresh the rows are.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Stamp {
    pub(crate) lsn: millrace_base::Lsn,
    /// Microseconds since 1970; the last transaction seen.
    pub(crate) commit_time: i64,
    /// Microseconds since 1970; nothing newer was waiting then.
    pub(crate) confirmed_at: i64,
    pub(crate) run_id: i64,
}

impl From<Freshness> for Stamp {
    fn from(freshness: Freshness) -> Self {
        Self {
            lsn: freshness.watermark,
            commit_time: freshness.commit_time.0,
            confirmed_at: freshness.confirmed_at.0,
            run_id: freshness.run_id,
        }
    }
}

impl Stamp {
    /// When the data were last known to be complete.
    pub(crate) fn as_of(&self) -> millrace_base::Micros {
        millrace_base::Micros(self.commit_time.max(self.confirmed_at))
    }
}

/// A report's answer, for drawing and reading.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TileData {
    pub(crate) report: String,
    pub(crate) title: String,
    pub(crate) chart: ChartKind,
    pub(crate) x: Option<String>,
    pub(crate) y: Vec<String>,
    pub(crate) currency: Option<String>,
    pub(crate) columns: Vec<TileColumn>,
    /// Exact values: numbers that JavaScript cannot hold are texts.
    pub(crate) rows: Vec<Vec<serde_json::Value>>,
    /// The same as people read them.
    pub(crate) texts: Vec<Vec<String>>,
    /// Where a click on a row leads.
    pub(crate) links: Option<Vec<String>>,
    pub(crate) truncated: bool,
    pub(crate) freshness: Stamp,
    /// Changes when anything drawn changes, and only then.
    pub(crate) hash: String,
    pub(crate) csv: String,
    pub(crate) page: String,
    pub(crate) sql: String,
}

/// A sort that the reader asked for: `_sort=column` or `_sort=-column`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sort<'a> {
    pub(crate) column: &'a str,
    pub(crate) descending: bool,
}

impl<'a> Sort<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        match text.strip_prefix('-') {
            Some(column) => Self { column, descending: true },
            None => Self { column: text, descending: false },
        }
    }
}

/// The statement of a report for these filters. A sort by a column that the report lacks is left out.
pub(crate) async fn query(
    console: &Console,
    report: &Report,
    filters: &Filters,
    deadline: Duration,
) -> Result<Query, TileError> {
    let params = filters.bind(report)?;
    let mut sql = report.sql.clone();
    if let Some(sort) = filters.given("_sort").map(Sort::parse) {
        let (columns, _) = console.state.reader.describe(&report.sql).await.map_err(TileError::Query)?;
        if columns.iter().any(|c| c.name == sort.column) {
            let inner = report.sql.trim().trim_end_matches(';');
            let direction = if sort.descending { "DESC" } else { "ASC" };
            // the line break ends a comment on the last line
            sql = format!(
                "SELECT * FROM (\n{inner}\n) AS report ORDER BY {} {direction} NULLS LAST",
                millrace_base::Ident(sort.column)
            );
        }
    }
    let mut query = Query::new(sql).with(params);
    query.deadline = deadline;
    Ok(query)
}

/// A report's own page as the origin of what is drilled from it, with where the reader came from. Past a
/// length that every server and browser takes, the way back is cut short.
pub(crate) fn report_origin(report: &Report, filters: &Filters) -> String {
    const LENGTH_MAX: usize = 1500;
    let own = filters.for_params(&report.params);
    let back = filters.given("_back").filter(|back| back.len() <= LENGTH_MAX);
    let back = back.map(|back| ("_back".to_owned(), back.to_owned()));
    format!("/reports/{}{}", report.name, query_of(&own.into_iter().chain(back).collect::<Vec<_>>()))
}

/// Runs a report. `origin` is the dashboard (path and query) that drilled pages lead back to.
pub(crate) async fn run(
    console: &Console,
    report: &Report,
    title: Option<&str>,
    filters: &Filters,
    origin: &str,
) -> Result<TileData, TileError> {
    let query = query(console, report, filters, TILE_DEADLINE).await?;
    let newest = console.pulse.newest(console).await;
    let set = console.cache.get(&query, newest, || ask(console, report, query.clone())).await?;
    Ok(shape(console, report, title, filters, origin, &set))
}

async fn ask(console: &Console, report: &Report, query: Query) -> Result<RowSet, TileError> {
    let answer = async { console.state.reader.query(query).await?.collect(ROWS_MAX).await };
    match tokio::time::timeout(TILE_DEADLINE, answer).await {
        Ok(Ok(set)) => Ok(set),
        Ok(Err(error)) => {
            tracing::warn!(report = report.name, sqlstate = error.sqlstate, "a report failed");
            Err(TileError::Query(error))
        }
        Err(_) => Err(TileError::Deadline(TILE_DEADLINE)),
    }
}

fn shape(
    console: &Console,
    report: &Report,
    title: Option<&str>,
    filters: &Filters,
    origin: &str,
    set: &RowSet,
) -> TileData {
    let catalog = &console.state.catalog;
    let columns: Vec<TileColumn> = set.columns.iter().map(|column| tile_column(report, column)).collect();
    let currency = catalog.currency.clone();
    let rows: Vec<Vec<_>> = set.rows.iter().map(|row| row.iter().map(format::json).collect()).collect();
    // a table says the currency once, in the header
    let texts: Vec<Vec<String>> = set
        .rows
        .iter()
        .map(|row| row.iter().zip(&columns).map(|(value, column)| format::pretty(value, column.format, None)).collect())
        .collect();
    let links = report.drill.as_ref().and_then(|drill| {
        let target = catalog.report(&drill.report)?;
        let shared: Vec<(String, String)> = filters
            .for_params(&target.params)
            .into_iter()
            .filter(|(name, _)| !drill.bind.iter().any(|(param, _)| param == name))
            .collect();
        Some(
            set.rows
                .iter()
                .map(|row| drill_link(&drill.bind, &target.name, &set.columns, row, &shared, origin))
                .collect(),
        )
    });
    let own = query_of(&filters.for_params(&report.params));
    let mut data = TileData {
        report: report.name.clone(),
        title: title.unwrap_or(&report.title).to_owned(),
        chart: report.chart,
        x: report.x.clone(),
        y: report.y.clone(),
        currency,
        columns,
        rows,
        texts,
        links,
        truncated: set.truncated,
        freshness: set.freshness.into(),
        hash: String::new(),
        csv: format!("/api/v1/reports/{}.csv{own}", report.name),
        page: format!("/reports/{}{own}", report.name),
        sql: report.source_sql.clone(),
    };
    data.hash = hash(&data);
    data
}

fn tile_column(report: &Report, column: &ResultColumn) -> TileColumn {
    TileColumn {
        name: column.name.clone(),
        label: format::label(&column.name),
        format: format::of_column(report, &column.name),
        number: format::is_number(column.value_type),
    }
}

fn drill_link(
    bind: &[(String, String)],
    target: &str,
    columns: &[ResultColumn],
    row: &[Value],
    shared: &[(String, String)],
    origin: &str,
) -> String {
    let bound = bind.iter().filter_map(|(param, column)| {
        let position = columns.iter().position(|c| c.name == *column)?;
        Some((param.clone(), format::plain(row.get(position)?)))
    });
    let mut pairs: Vec<(String, String)> = bound.chain(shared.iter().cloned()).collect();
    if !origin.is_empty() {
        pairs.push(("_back".to_owned(), origin.to_owned()));
    }
    format!("/reports/{target}{}", query_of(&pairs))
}

fn hash(data: &TileData) -> String {
    let mut hasher = Sha256::new();
    for column in &data.columns {
        hasher.update(column.name.as_bytes());
        hasher.update([0]);
    }
    for text in data.rows.iter().flatten() {
        hasher.update(text.to_string().as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}
