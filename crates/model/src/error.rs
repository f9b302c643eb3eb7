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

impl ModelError {
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds "did you mean" if a known name is near.
    pub(crate) fn near<'a>(mut self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        self.hint = crate::declare::nearest(name, known).map(|found| format!("did you mean `{found}`?"));
        self
    }
}
