//! What can go wrong with the warehouse file, and what to do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

use millrace_contract::SinkError;
use millrace_model::ModelError;

/// An error of the warehouse.
#[derive(Debug, thiserror::Error)]
pub enum WarehouseError {
    #[error("the warehouse file {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("the warehouse file {path} is open in another process{}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error("the warehouse file {path} was written by a newer version: {reason}")]
    Newer { path: PathBuf, reason: String },
    #[error("the warehouse file {path} cannot be opened: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("the folder {path} cannot be made")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A statement of ours failed: out of memory, disk full, or a bug.
    #[error("the warehouse engine refused a statement")]
    Engine(#[from] duckdb::Error),
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A declaration that the engine refuses (types that do not fit together, …).
    #[error("model {model} cannot be built: {reason}")]
    Build { model: String, reason: String },
    /// What `audit` says about itself cannot be read.
    #[error("the warehouse's own records are not readable: {0}")]
    Records(String),
    #[error("the warehouse's writer has ended")]
    Closed,
    /// The engine gave up; only closing and opening the file helps, and statements still hold it.
    #[error("the warehouse file {path} is being closed after a fatal error of the engine")]
    Reopening { path: PathBuf },
}

impl WarehouseError {
    /// Reads DuckDB's message for the cause of a failed opening.
    pub(crate) fn opening(path: &Path, source: duckdb::Error) -> Self {
        let path = path.to_owned();
        let reason = message(&source);
        let lower = reason.to_lowercase();
        if lower.contains("conflicting lock")
            || lower.contains("could not set lock")
            || lower.contains("being used by another process")
        {
            return Self::Locked { path, pid: pid_in(&reason) };
        }
        if lower.contains("newer") || lower.contains("with version number") {
            return Self::Newer { path, reason };
        }
        let damaged = [
            "not a valid duckdb database",
            "corrupt",
            "checksum",
            "serialization error",
            "failure while replaying wal",
            "could not read",
            "unexpected end of file",
            "internal error",
        ];
        if damaged.iter().any(|part| lower.contains(part)) {
            return Self::Damaged { path, reason };
        }
        Self::Open { path, reason }
    }

    /// What a person can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Damaged { path, .. } => format!(
                "move {0} (and {0}.wal) away; the next start copies everything from the source again",
                path.display()
            ),
            Self::Locked { pid: Some(pid), .. } => {
                format!("stop process {pid}, or ask the running platform: `millrace status`")
            }
            Self::Locked { pid: None, .. } => {
                "a platform runs already: `millrace status`; only one process may open the file".into()
            }
            Self::Newer { .. } => {
                "run the newer millrace that wrote it, or move the file away for a new initial copy".into()
            }
            Self::Open { .. } | Self::Folder { .. } => {
                "check that the folder exists, is writable by this user and has space".into()
            }
            Self::Engine(_) => {
                "check free disk space and [warehouse] memory_limit; the log has the engine's message".into()
            }
            Self::Model(_) | Self::Build { .. } => "correct the declaration and run `millrace check`".into(),
            Self::Records(_) => {
                "move the file away for a new initial copy, and keep it for a report of the fault".into()
            }
            Self::Closed => "see the log for why it ended; restart the platform".into(),
            Self::Reopening { .. } => {
                "it is opened again by itself when its last statement has ended; if it lasts: `millrace down`, then `millrace up`".into()
            }
        }
    }
}

/// DuckDB's own words, without the wrapper's.
pub(crate) fn message(error: &duckdb::Error) -> String {
    match error {
        duckdb::Error::DuckDBFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    }
}

/// `… Conflicting lock is held in /path (PID 123) …`
fn pid_in(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("PID ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// What kind of trouble an error of the engine is, as its words tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No room on the disk.
    Full,
    /// The engine answers nothing more until the file was closed and opened again.
    Fatal,
    /// May pass by itself: no memory, a conflict, an interruption.
    Passing,
    /// The statement's own.
    Statement,
}

/// Sorts an error of the engine.
pub(crate) fn trouble(error: &duckdb::Error) -> Trouble {
    let text = message(error).to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    // these may quote values of rows, which say what they like
    if ["binder error", "catalog error", "constraint error", "conversion error", "invalid input error", "parser error"]
        .iter()
        .any(|kind| text.starts_with(kind))
    {
        Trouble::Statement
    } else if text.starts_with("fatal error") || text.starts_with("internal error") || has(&["has been invalidated"]) {
        Trouble::Fatal
    } else if is_full(&text) {
        Trouble::Full
    } else if has(&["out of memory", "could not write", "could not sync", "conflict", "interrupt"]) {
        Trouble::Passing
    } else {
        Trouble::Statement
    }
}

/// Whether an engine's words speak of a full disk.
pub(crate) fn is_full(text: &str) -> bool {
    let text = text.to_lowercase();
    ["no space left", "disk full", "disk quota exceeded", "max_temp_directory_size"]
        .iter()
        .any(|part| text.contains(part))
}

impl WarehouseError {
    /// The engine's own words, where it is about the engine.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Engine(source) => message(source),
            other => other.to_string(),
        }
    }

    /// What kind of trouble it is; anything that is not the engine's is the statement's.
    pub(crate) fn trouble(&self) -> Trouble {
        match self {
            Self::Engine(source) => trouble(source),
            Self::Reopening { .. } => Trouble::Fatal,
            _ => Trouble::Statement,
        }
    }
}

/// Sorts an engine's error by what the caller should do.
impl From<WarehouseError> for SinkError {
    fn from(error: WarehouseError) -> Self {
        let text = error.words();
        match error.trouble() {
            Trouble::Full => Self::Full(text),
            // the disk is the cause, the engine's giving up only what followed
            Trouble::Fatal if is_full(&text) => Self::Full(text),
            Trouble::Fatal => Self::Retry(format!("the engine failed, its file is opened again: {text}")),
            Trouble::Passing => Self::Retry(text),
            Trouble::Statement => Self::Fatal { reason: text, hint: error.hint() },
        }
    }
}
