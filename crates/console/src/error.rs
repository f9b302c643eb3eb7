//! Errors as pages and as JSON.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl ApiError {
    pub(crate) fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.into(), hint: Some(hint.into()) }
    }
}

impl From<crate::tile::TileError> for ApiError {
    fn from(error: crate::tile::TileError) -> Self {
        use crate::tile::TileError;
        let status = match &error {
            TileError::Param(_) => StatusCode::BAD_REQUEST,
            TileError::Query(_) => StatusCode::BAD_GATEWAY,
            TileError::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
        };
        Self { status, message: error.to_string(), hint: Some(error.hint()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": { "message": self.message, "hint": self.hint } }))).into_response()
    }
}
