//! The browser's files, embedded: script and style bundled by `web/`, the icon.

use axum::{
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Shared;

#[derive(Debug)]
struct Asset {
    name: &'static str,
    content_type: &'static str,
    plain: &'static [u8],
    gzip: Option<&'static [u8]>,
    brotli: Option<&'static [u8]>,
    version: String,
}

/// All files with the version that their URLs carry.
#[derive(Debug)]
pub(crate) struct Assets(Vec<Asset>);

macro_rules! bundled {
    ($name:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: $content_type,
            plain: include_bytes!(concat!("../../../web/dist/", $name)),
            gzip: Some(include_bytes!(concat!("../../../web/dist/", $name, ".gz"))),
            brotli: Some(include_bytes!(concat!("../../../web/dist/", $name, ".br"))),
            version: String::new(),
        }
    };
}

impl Assets {
    pub(crate) fn new() -> Self {
        let mut assets = vec![
            bundled!("app.css", "text/css; charset=utf-8"),
            bundled!("app.js", "text/javascript; charset=utf-8"),
            bundled!("boot.js", "text/javascript; charset=utf-8"),
            bundled!("charts.js", "text/javascript; charset=utf-8"),
            Asset {
                name: "icon.svg",
                content_type: "image/svg+xml",
                plain: include_bytes!("icon.svg"),
                gzip: None,
                brotli: None,
                version: String::new(),
            },
        ];
        for asset in &mut assets {
            asset.version =
                Sha256::digest(asset.plain).iter().take(5).fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
        }
        Self(assets)
    }

    /// The URL of a file; it changes with the content.
    pub(crate) fn url(&self, name: &str) -> String {
        let version = self.0.iter().find(|a| a.name == name).map_or("", |a| a.version.as_str());
        format!("/assets/{name}?v={version}")
    }
}

/// The version in the URL.
#[derive(Debug, Deserialize)]
pub(crate) struct Version {
    #[serde(default)]
    v: String,
}

/// Whether a client takes an encoding; `q=0` says that it does not.
fn accepts(headers: &HeaderMap, encoding: &str) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|part| {
        let mut pieces = part.split(';').map(str::trim);
        let refused = |piece: &str| piece.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0));
        pieces.next() == Some(encoding) && !pieces.any(refused)
    })
}

/// `GET /assets/{name}?v=HASH`: with the content's hash in the URL it may be kept for ever, otherwise
/// only as long as it is the same (an old page that asks after an upgrade must not keep what it gets).
pub(crate) async fn serve(
    State(console): State<Shared>,
    Path(name): Path<String>,
    Query(wanted): Query<Version>,
    headers: HeaderMap,
) -> Response {
    let Some(asset) = console.assets.0.iter().find(|a| a.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // the same for all encodings, hence weak
    let tag = format!("W/\"{}\"", asset.version);
    let caching = if wanted.v == asset.version { "public, max-age=31536000, immutable" } else { "no-cache" };
    let common = [(header::CACHE_CONTROL, caching), (header::VARY, "Accept-Encoding"), (header::ETAG, &tag)];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let (body, encoding) = match (asset.brotli, asset.gzip) {
        (Some(brotli), _) if accepts(&headers, "br") => (brotli, Some("br")),
        (_, Some(gzip)) if accepts(&headers, "gzip") => (gzip, Some("gzip")),
        _ => (asset.plain, None),
    };
    let mut response = (common, [(header::CONTENT_TYPE, asset.content_type)], body).into_response();
    if let Some(encoding) = encoding {
        response.headers_mut().insert(header::CONTENT_ENCODING, axum::http::HeaderValue::from_static(encoding));
    }
    response
}
