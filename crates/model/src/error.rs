//! What is wrong with a declaration: where, what, and what was probably meant.

/// A declaration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {message}{}", line.map(|l| format!(":{l}")).unwrap_or_default(), hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct ModelError {
    /// The file as it was named by the caller.
    pub file: String,
    /// From 1; `None` when it concerns the file as a whole.
    pub line: Option<usize>,
    pub message: String,
    pub hint: Option<String>,
}
