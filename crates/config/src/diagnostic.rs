//! What is wrong in a text that a person wrote: where, what, and what to do.
//!
//! Invariant: every diagnostic names a file and a place in it and shows the line, so that nobody
//! has to search. Several are collected before giving up, in the order of the text.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// As the caller named it.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The whole line, without its end.
    pub snippet: String,
    /// Characters of the line that are meant; at least 1.
    pub width: usize,
    /// Lowercase, without a full stop.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}:{}: {}", self.path.display(), self.line, self.column, self.message)?;
        let gutter = self.line.to_string().len();
        writeln!(f, "  {} | {}", self.line, self.snippet)?;
        // a tab stays a tab, so that the caret stands below its character
        let before: String =
            self.snippet.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, "  {:gutter$} | {before}{}", "", "^".repeat(self.width))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  {:gutter$} = hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// All that was found wrong; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// A text with its name, collecting what is wrong with it.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
    found: RefCell<Vec<(usize, Diagnostic)>>,
    /// How many of the first ones make the text unreadable.
    malformed: Cell<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, found: RefCell::new(Vec::new()), malformed: Cell::new(0) }
    }

    /// Records a mistake at the byte range `span`.
    pub(crate) fn wrong(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        let start = span.start.min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let snippet = self.text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let column = self.text.get(line_start..start).unwrap_or_default().chars().count() + 1;
        let line_end = line_start + snippet.len();
        let width = self.text.get(start..span.end.min(line_end).max(start)).unwrap_or_default().chars().count();
        let diagnostic = Diagnostic {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column,
            snippet: snippet.to_owned(),
            width: width.max(1),
            message: message.into(),
            hint,
        };
        self.found.borrow_mut().push((start, diagnostic));
    }

    /// The number of the line at byte `at`, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or_default().matches('\n').count() + 1
    }

    /// What was found so far makes the text unreadable: what is found later would only follow from it.
    pub(crate) fn stop_here(&self) {
        self.malformed.set(self.found.borrow().len());
    }

    /// What was found, in the order of the text.
    pub(crate) fn into_found(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        if self.malformed.get() > 0 {
            found.truncate(self.malformed.get());
        }
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }
}

/// The known word nearest to `word`, if one is near enough to be meant.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// "did you mean …?", or else the list of what is known.
pub(crate) fn suggest(word: &str, what: &str, known: &[&str]) -> Option<String> {
    if let Some(near) = nearest(word, known.iter().copied()) {
        return Some(format!("did you mean `{near}`?"));
    }
    if known.is_empty() {
        return Some(format!("there are no {what}"));
    }
    Some(format!("{what}: {}", known.join(", ")))
}
