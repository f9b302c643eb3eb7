//! Why a backup, its log or a restore cannot be had.

use std::{io, path::PathBuf};

use millrace_base::Lsn;
use millrace_pg::{PgError, ServerError};

use crate::plan::PlanError;

/// Why a backup, its log or a restore cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("repository {repository}: cannot {doing} {object}: {source}")]
    Repository {
        repository: String,
        doing: &'static str,
        object: String,
        #[source]
        source: Box<object_store::Error>,
    },
    #[error("repository {repository}: {reason}")]
    BadRepository { repository: String, reason: String },
    #[error("repository object {object} is damaged: {reason}")]
    Damaged { object: String, reason: String },
    #[error("repository object {object} was written by a later version (format {format})")]
    LaterFormat { object: String, format: u32 },
    #[error("none of the given keys decrypts {object}")]
    WrongKey { object: String },
    #[error("{object} is encrypted and no key was given")]
    NoKey { object: String },
    #[error("the key is not usable: {0}")]
    BadKey(String),
    #[error("cannot encrypt: {0}")]
    Encrypt(String),
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Sql(#[from] PgError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("another backup of this server is running")]
    Busy,
    #[error("this server cannot be backed up: {0}")]
    Unfit(String),
    #[error("the repository has no log up to {needed} on timeline {timeline}, which backup {label} needs to be of use")]
    WalNotArchived { label: String, timeline: u32, needed: Lsn },
    #[error("the repository has {name} already, with other content")]
    WalConflict { name: String },
    #[error("the repository does not have {name}")]
    WalAbsent { name: String },
    #[error("the log between {from} and {to} is on no server any more and never reached the repository")]
    WalLost { from: Lsn, to: Lsn },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot restore into {}: {reason}", path.display())]
    Target { path: PathBuf, reason: String },
    #[error("{} MiB are needed for {}, and {} MiB are free there", needed_bytes >> 20, path.display(), free_bytes >> 20)]
    NoRoom { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("a restore works with the base in {} just now", .0.display())]
    BaseInUse(PathBuf),
    #[error("there is no backup {0} in the repository")]
    NoSuchBackup(String),
    #[error("a backup was marked to be held while others were removed; what is left of them stays for now")]
    HeldMeanwhile,
    #[error("another proof goes on in {}", .0.display())]
    ProofRuns(PathBuf),
    #[error("the restored server failed its proof: {0}")]
    Proof(String),
    #[error("cancelled")]
    Cancelled,
    #[error("a worker panicked: {0}")]
    Panicked(String),
}

impl BackupError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Repository { .. } => "is it reachable, writable and not full?".to_owned(),
            Self::Damaged { .. } => {
                "verify tells what else is damaged; another backup or repository may be whole".to_owned()
            }
            Self::LaterFormat { .. } => "use the version of millrace that wrote it, or a later one".to_owned(),
            Self::WrongKey { .. } => "it needs the key of one of the recipients it was made for".to_owned(),
            Self::NoKey { .. } => "give the key (AGE-SECRET-KEY-1…)".to_owned(),
            Self::Busy => "wait for it, or end it: its lock goes with its session".to_owned(),
            Self::WalNotArchived { .. } => {
                "is the log's archive running? This backup does not count: it could not be restored".to_owned()
            }
            Self::WalConflict { .. } => "two servers archive to the same place: give a clone a new identity, or \
                                         a repository of its own"
                .to_owned(),
            Self::WalLost { .. } => {
                "make a full backup now: points in time before it cannot be reached over the gap".to_owned()
            }
            Self::Target { .. } => "give an empty folder".to_owned(),
            Self::NoRoom { .. } => "free space there, or name a folder on a larger disk".to_owned(),
            Self::BaseInUse(_) => "try again once that copy is made".to_owned(),
            Self::Sql(error) => return error.hint(),
            Self::Server(error) => return error.hint(),
            Self::BadRepository { .. }
            | Self::BadKey(_)
            | Self::Encrypt(_)
            | Self::Io { .. }
            | Self::Unfit(_)
            | Self::WalAbsent { .. }
            | Self::Plan(_)
            | Self::NoSuchBackup(_)
            | Self::HeldMeanwhile
            | Self::ProofRuns(_)
            | Self::Proof(_)
            | Self::Cancelled
            | Self::Panicked(_) => return None,
        })
    }

    /// There is no room left on a disk.
    pub(crate) fn is_full(&self) -> bool {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(now) = error {
            let kind = now.downcast_ref::<io::Error>().map(io::Error::kind);
            if kind.is_some_and(|kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
                return true;
            }
            error = now.source();
        }
        false
    }

    /// It says something of the backup that was to be restored, not of the place, the moment or who asked.
    #[must_use]
    pub fn is_of_the_backup(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::WalConflict { .. }
            | Self::WalAbsent { .. }
            | Self::WalLost { .. }
            | Self::Plan(PlanError::LogMissing { .. } | PlanError::ChainBroken { .. })
            | Self::Proof(_) => true,
            Self::Repository { .. } => self.is_not_found(),
            Self::Plan(_) => false,
            Self::LaterFormat { .. }
            | Self::BadRepository { .. }
            | Self::WrongKey { .. }
            | Self::NoKey { .. }
            | Self::BadKey(_)
            | Self::Encrypt(_)
            | Self::Io { .. }
            | Self::Sql(_)
            | Self::Server(_)
            | Self::Busy
            | Self::Unfit(_)
            | Self::WalNotArchived { .. }
            | Self::Target { .. }
            | Self::NoRoom { .. }
            | Self::NoSuchBackup(_)
            | Self::HeldMeanwhile
            | Self::ProofRuns(_)
            | Self::BaseInUse(_)
            | Self::Cancelled
            | Self::Panicked(_) => false,
        }
    }

    /// What was done so far is of use to another attempt.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Repository { .. }
            | Self::BadRepository { .. }
            | Self::Io { .. }
            | Self::Sql(_)
            | Self::Server(_)
            | Self::WalNotArchived { .. }
            | Self::Cancelled => true,
            Self::Damaged { .. }
            | Self::LaterFormat { .. }
            | Self::WrongKey { .. }
            | Self::NoKey { .. }
            | Self::BadKey(_)
            | Self::Encrypt(_)
            | Self::Busy
            | Self::Unfit(_)
            | Self::WalConflict { .. }
            | Self::WalAbsent { .. }
            | Self::WalLost { .. }
            | Self::Plan(_)
            | Self::Target { .. }
            | Self::NoRoom { .. }
            | Self::NoSuchBackup(_)
            | Self::HeldMeanwhile
            | Self::ProofRuns(_)
            | Self::BaseInUse(_)
            | Self::Proof(_)
            | Self::Panicked(_) => false,
        }
    }

    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    pub(crate) fn damaged(object: impl Into<String>, reason: impl ToString) -> Self {
        Self::Damaged { object: object.into(), reason: reason.to_string() }
    }

    /// The object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Repository { source, .. } if matches!(**source, object_store::Error::NotFound { .. }))
    }

    /// The object is there already.
    pub(crate) fn already_exists(&self) -> bool {
        matches!(self, Self::Repository { source, .. } if matches!(**source, object_store::Error::AlreadyExists { .. }))
    }

    /// The server went away in the midst of it: another one, or the same a little later, may do.
    #[must_use]
    pub fn is_lost_server(&self) -> bool {
        matches!(self, Self::Sql(error) if error.is_transient())
    }

    /// Whether the repository or the server may simply be away for a while.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Repository { source, .. } => !matches!(**source, object_store::Error::AlreadyExists { .. }),
            // a slot that a session before us still holds: its server has not noticed yet that it is gone
            Self::Sql(error) => error.is_transient() || error.sqlstate() == Some("55006"),
            Self::BadRepository { .. }
            | Self::Damaged { .. }
            | Self::LaterFormat { .. }
            | Self::WrongKey { .. }
            | Self::NoKey { .. }
            | Self::BadKey(_)
            | Self::Encrypt(_)
            | Self::Io { .. }
            | Self::Server(_)
            | Self::Busy
            | Self::Unfit(_)
            | Self::WalNotArchived { .. }
            | Self::WalConflict { .. }
            | Self::WalAbsent { .. }
            | Self::WalLost { .. }
            | Self::Plan(_)
            | Self::Target { .. }
            | Self::NoRoom { .. }
            | Self::BaseInUse(_)
            | Self::NoSuchBackup(_)
            | Self::HeldMeanwhile
            | Self::ProofRuns(_)
            | Self::Proof(_)
            | Self::Cancelled
            | Self::Panicked(_) => false,
        }
    }
}
