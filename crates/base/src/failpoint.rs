//! Named places where a test can make the process die or fail, as a crash there would.
//!
//! A failpoint is armed once, at start, by `--failpoint NAME[=HITS]:ACTION` of a build with debug
//! assertions; release builds compile the checks away. Nothing else may depend on them.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// What an armed failpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process dies at once, as by `kill -9`: no destructor, no flush.
    Abort,
    /// The place returns an error.
    Error,
}

#[derive(Debug)]
struct Armed {
    name: String,
    action: Action,
    left: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// A failpoint was hit whose action is [`Action::Error`].
#[derive(Debug, thiserror::Error)]
#[error("failpoint {0} was hit")]
pub struct Hit(pub &'static str);

/// The text is not `NAME:abort`, `NAME:error` or `NAME=HITS:…`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a failpoint; write NAME:abort, NAME:error or NAME=HITS:abort")]
pub struct ParseError(String);

/// Arms one failpoint for the life of the process: it acts at its `HITS`-th passage (default 1st).
///
/// # Errors
/// If `text` is malformed or one is armed already.
pub fn arm(text: &str) -> Result<(), ParseError> {
    let bad = || ParseError(text.to_owned());
    let (place, action) = text.rsplit_once(':').ok_or_else(bad)?;
    let action = match action {
        "abort" => Action::Abort,
        "error" => Action::Error,
        _ => return Err(bad()),
    };
    let (name, hits) = match place.split_once('=') {
        Some((name, hits)) => (name, hits.parse().map_err(|_| bad())?),
        None => (place, 1),
    };
    ARMED.set(Armed { name: name.to_owned(), action, left: AtomicU64::new(hits) }).map_err(|_| bad())
}

/// Passes the place called `name`.
///
/// # Errors
/// [`Hit`] if it is armed with [`Action::Error`]; with [`Action::Abort`] it does not return.
#[inline]
pub fn pass(name: &'static str) -> Result<(), Hit> {
    if cfg!(debug_assertions)
        && let Some(armed) = ARMED.get()
        && armed.name == name
        && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        match armed.action {
            Action::Abort => std::process::abort(),
            Action::Error => return Err(Hit(name)),
        }
    }
    Ok(())
}
