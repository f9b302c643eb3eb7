//! JSON and CSV for machines, and for the pages' own script.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{OriginalUri, Path, Query as UrlQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use millrace_contract::{query::RowStream, report::Report};
use serde_json::json;

use crate::{
    Shared, csv,
    error::ApiError,
    params::{Filters, query_of},
    tile,
};

type Pairs = UrlQuery<Vec<(String, String)>>;

/// A whole download may take longer than a page.
const CSV_DEADLINE: Duration = Duration::from_secs(300);

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: reports can be answered.
pub(crate) async fn readyz(State(console): State<Shared>) -> Response {
    let answer = tokio::time::timeout(Duration::from_secs(2), console.state.reader.freshness()).await;
    match answer {
        Ok(Ok(freshness)) if freshness.watermark.is_valid() => "ready\n".into_response(),
        Ok(Ok(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: the initial copy has not committed\n").into_response()
        }
        Ok(Err(_)) | Err(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: the warehouse does not answer\n").into_response()
        }
    }
}

/// `GET /api/v1/status`.
pub(crate) async fn status(State(console): State<Shared>) -> Response {
    Json(console.state.operator.status().await).into_response()
}

/// Any other path under `/api`.
pub(crate) async fn missing(OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::not_found(
        format!("there is no {}", uri.path()),
        "see /api/v1/catalog, /api/v1/status, /api/v1/reports/NAME.json, /api/v1/dashboards/SLUG/tiles/N",
    )
}

/// `GET /api/v1/dashboards/{slug}/tiles/{position}`; positions count from 0.
pub(crate) async fn tile(
    State(console): State<Shared>,
    Path((slug, position)): Path<(String, String)>,
    UrlQuery(pairs): Pairs,
) -> Result<Response, ApiError> {
    let catalog = &console.state.catalog;
    let dashboard = catalog.dashboard(&slug).ok_or_else(|| {
        let known: Vec<_> = catalog.dashboards.iter().map(|d| d.slug.as_str()).collect();
        ApiError::not_found(format!("there is no dashboard `{slug}`"), format!("known: {}", known.join(", ")))
    })?;
    let tile = position.parse::<usize>().ok().and_then(|position| dashboard.tiles.get(position)).ok_or_else(|| {
        ApiError::not_found(
            format!("dashboard `{slug}` has no tile {position}"),
            format!("tiles are numbered 0 to {}", dashboard.tiles.len().saturating_sub(1)),
        )
    })?;
    let report = find(&console, &tile.report)?;
    let filters = Filters::new(pairs).with_defaults(&dashboard.filters);
    let origin = format!("/dashboards/{slug}{}", query_of(&filters.for_params(&dashboard.filters)));
    let data = tile::run(&console, &report, tile.title.as_deref(), &filters, &origin).await?;
    Ok(Json(data).into_response())
}

fn find(console: &Shared, name: &str) -> Result<Arc<Report>, ApiError> {
    console.state.catalog.report(name).cloned().ok_or_else(|| {
        let known: Vec<_> = console.state.catalog.reports.iter().map(|r| r.name.as_str()).collect();
        ApiError::not_found(format!("there is no report `{name}`"), format!("known: {}", known.join(", ")))
    })
}

/// `GET /api/v1/reports/{name}.json` and `.csv`.
pub(crate) async fn report(
    State(console): State<Shared>,
    Path(file): Path<String>,
    UrlQuery(pairs): Pairs,
) -> Result<Response, ApiError> {
    let filters = Filters::new(pairs);
    match file.rsplit_once('.') {
        Some((name, "json")) => {
            let report = find(&console, name)?;
            let data = tile::run(&console, &report, None, &filters, &tile::report_origin(&report, &filters)).await?;
            Ok(Json(json!(data)).into_response())
        }
        Some((name, "csv")) => {
            let report = find(&console, name)?;
            let query = tile::query(&console, &report, &filters, CSV_DEADLINE).await?;
            let rows = console.state.reader.query(query).await.map_err(tile::TileError::Query)?;
            Ok(download(&report.name, rows))
        }
        _ => Err(ApiError::not_found(format!("there is no {file}"), "ask for NAME.json or NAME.csv")),
    }
}

/// All rows as they arrive. A failure in the middle breaks the transfer, so that a part is not taken for the whole.
fn download(name: &str, rows: RowStream) -> Response {
    let header_line = csv::header(&rows.columns);
    let freshness = rows.freshness;
    let body = stream::unfold((Some(header_line), rows), |(header_line, mut rows)| async move {
        if let Some(line) = header_line {
            return Some((Ok(line), (None, rows)));
        }
        let chunk = rows.rows.recv().await?;
        let text = chunk.map(|chunk| chunk.iter().map(|row| csv::row(row)).collect::<String>());
        Some((text, (None, rows)))
    });
    // who compresses asks once more after the end
    let body = Body::from_stream(body.fuse());
    (
        [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present".to_owned()),
            (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}.csv\"")),
            (header::HeaderName::from_static("millrace-watermark"), freshness.watermark.to_string()),
        ],
        body,
    )
        .into_response()
}
