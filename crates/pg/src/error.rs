//! What goes wrong with PostgreSQL, by cause, each with what to do about it.

use std::{io, path::PathBuf, time::Duration};

use tokio_postgres::error::SqlState;

/// A connection could not be made or a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// Nothing listens there, or the network is in the way.
    #[error("cannot reach a server at {address}")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
    /// The server was reached but no trusted TLS connection came about.
    #[error("no trusted TLS connection to the server at {address}: {reason}")]
    Tls { address: String, reason: String },
    /// The server itself said no.
    #[error("{message}")]
    Server {
        /// Five characters (PostgreSQL manual, appendix A).
        sqlstate: String,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    },
    /// No answer in time.
    #[error("the server at {address} did not answer within {:.1} s", deadline.as_secs_f64())]
    Timeout { address: String, deadline: Duration },
    /// The connection ended under a statement.
    #[error("the connection to the server was lost")]
    Closed(#[source] tokio_postgres::Error),
    /// A message or value was not what was expected.
    #[error("the server's answer was not understood: {0}")]
    Protocol(String),
}

impl PgError {
    /// PostgreSQL's code of the error, if the server answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { sqlstate, .. } => Some(sqlstate),
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Closed(_)
            | Self::Protocol(_) => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some("is the server running, and is the port right?".to_owned()),
            Self::Tls { .. } => {
                Some("the server's certificate must be made by the trusted authority and name this host".to_owned())
            }
            Self::Timeout { .. } => Some("the server hangs or is overloaded; look at its log".to_owned()),
            Self::Server { hint, .. } => hint.clone(),
            Self::Closed(_) | Self::Protocol(_) => None,
        }
    }

    /// Whether trying again a little later may help without anyone doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Closed(_) => true,
            Self::Tls { .. } | Self::Protocol(_) => false,
            Self::Server { sqlstate, .. } => {
                // connection exceptions, insufficient resources, operator intervention,
                // serialization failures and deadlocks
                sqlstate.starts_with("08")
                    || sqlstate.starts_with("53")
                    || sqlstate.starts_with("57P")
                    || sqlstate.starts_with("40")
            }
        }
    }

    /// A sender of log that shuts down has no words of its own for it.
    pub(crate) fn stream_ended() -> Self {
        Self::Server {
            sqlstate: "57P01".to_owned(),
            message: "the server ended the stream".to_owned(),
            detail: None,
            hint: None,
        }
    }

    /// An error met while connecting to `address` as `user` to `database`.
    pub(crate) fn connecting(error: tokio_postgres::Error, address: &str, user: &str, database: &str) -> Self {
        if error.as_db_error().is_some() {
            return Self::from(error).with_connect_hint(user, database);
        }
        // tokio-postgres does not show its kinds: the cause and the fixed text tell them apart
        let text = error.to_string();
        let reason = deepest(&error);
        if text.contains("TLS") {
            return Self::Tls { address: address.to_owned(), reason };
        }
        if text.contains("authentication") {
            return Self::Server {
                sqlstate: SqlState::INVALID_PASSWORD.code().to_owned(),
                message: format!("authentication as \"{user}\" failed: {reason}"),
                detail: None,
                hint: Some("the server and this client do not agree on how to authenticate".to_owned()),
            };
        }
        match error.into_source().map(|source| source.downcast::<io::Error>()) {
            Some(Ok(source)) => Self::Unreachable { address: address.to_owned(), source: *source },
            _ => Self::Unreachable { address: address.to_owned(), source: io::Error::other(reason) },
        }
    }

    fn with_connect_hint(self, user: &str, database: &str) -> Self {
        let Self::Server { sqlstate, message, detail, hint } = self else {
            return self;
        };
        let hint = hint.or_else(|| {
            Some(match sqlstate.as_str() {
                "28P01" => format!("the password of role \"{user}\" is not the one the server knows"),
                "28000" => {
                    format!("pg_hba.conf of the server lets \"{user}\" into \"{database}\" only as it says there")
                }
                "3D000" => format!("database \"{database}\" does not exist on this server"),
                "57P03" => "the server is starting, stopping or recovering: try again shortly".to_owned(),
                "53300" => "all connections are taken: close some or raise max_connections".to_owned(),
                _ => return None,
            })
        });
        Self::Server { sqlstate, message, detail, hint }
    }
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::Server {
                sqlstate: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().map(str::to_owned),
                hint: db.hint().map(str::to_owned),
            };
        }
        let lost =
            error.is_closed() || std::error::Error::source(&error).is_some_and(|source| source.is::<io::Error>());
        if lost { Self::Closed(error) } else { Self::Protocol(format!("{error}: {}", deepest(&error))) }
    }
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A server could not be made, started, copied or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("no PostgreSQL of version {oldest} or later was found{}", place.as_ref().map(|p| format!(" in {}", p.display())).unwrap_or_default())]
    NoPostgres { place: Option<PathBuf>, oldest: u32 },
    #[error("the user \"{0}\", as which the servers are to run, does not exist")]
    NoUser(String),
    #[error("servers cannot run as \"{wanted}\": this process runs as uid {uid} and may not change that")]
    CannotSwitchUser { wanted: String, uid: u32 },
    #[error("PostgreSQL refuses to run as root")]
    Root,
    #[error("{} is closed to the user \"{user}\", as which the servers run", folder.display())]
    Unreachable { user: String, folder: PathBuf },
    #[error("port {port} is in use")]
    PortInUse { port: u16 },
    #[error("{} belongs to {owner}, not to \"{expected}\", as which the servers run", path.display())]
    WrongOwner { path: PathBuf, owner: String, expected: String },
    #[error("{} was made by PostgreSQL {found}; the server found is version {expected}", data_dir.display())]
    WrongVersion { data_dir: PathBuf, found: String, expected: u32 },
    #[error("{} is not empty and not a PostgreSQL data directory", path.display())]
    NotADataDirectory { path: PathBuf },
    #[error("a server runs on {} already (process {pid})", data_dir.display())]
    AlreadyRunning { data_dir: PathBuf, pid: u32 },
    #[error("{} no longer has the log that slot {slot} needs", data_dir.display())]
    NoLog { slot: String, data_dir: PathBuf },
    #[error("no space is left on the disk of {}", path.display())]
    DiskFull { path: PathBuf },
    #[error("a setting was refused: {line}")]
    BadSetting { line: String },
    #[error("the data directory {} is damaged: {line}", data_dir.display())]
    Damaged { data_dir: PathBuf, line: String },
    #[error("the server on {} ended while it started{}", data_dir.display(), tail_of(log_tail))]
    Ended { data_dir: PathBuf, log_tail: Vec<String> },
    #[error("the server on {} was not ready within {:.0} s{}", data_dir.display(), deadline.as_secs_f64(), tail_of(log_tail))]
    NotReady { data_dir: PathBuf, deadline: Duration, log_tail: Vec<String> },
    #[error("{program} failed{}", tail_of(output))]
    Program { program: &'static str, output: Vec<String> },
    #[error("{program} did not end within {:.0} s", deadline.as_secs_f64())]
    ProgramTimeout { program: &'static str, deadline: Duration },
    #[error("process {pid} did not end")]
    WillNotStop { pid: u32 },
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ServerError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoPostgres { .. } => {
                "install one (Debian: apt install postgresql-15) or name its bin folder".to_owned()
            }
            Self::NoUser(user) => {
                format!("create it (useradd --system {user}) or name another user")
            }
            Self::CannotSwitchUser { .. } => "run as root or as that user".to_owned(),
            Self::Root => "name an ordinary user".to_owned(),
            Self::Unreachable { user, folder } => {
                format!(
                    "choose a place outside {}, or let \"{user}\" pass: chmod o+x {}",
                    folder.display(),
                    folder.display()
                )
            }
            Self::PortInUse { port } => {
                format!("stop what listens there (ss -ltnp 'sport = :{port}') or choose another port")
            }
            Self::WrongOwner { path, expected, .. } => {
                format!("choose another place, or chown -R {expected} {}", path.display())
            }
            Self::WrongVersion { found, .. } => {
                format!("install PostgreSQL {found}, or upgrade the data with pg_upgrade")
            }
            Self::NotADataDirectory { .. } => "choose another place; nothing there was touched".to_owned(),
            Self::AlreadyRunning { .. } => "stop it first, or let the platform adopt it".to_owned(),
            Self::DiskFull { .. } => "free some space; nothing is lost".to_owned(),
            Self::NoLog { .. } => "it is tried again once the slot's user has moved on".to_owned(),
            Self::BadSetting { .. } => "correct the setting in the configuration".to_owned(),
            Self::Damaged { .. } => "restore it, or rebuild it from another node".to_owned(),
            Self::NotReady { .. } => "it may still be recovering; its log says how far it is".to_owned(),
            Self::Ended { .. }
            | Self::Program { .. }
            | Self::ProgramTimeout { .. }
            | Self::WillNotStop { .. }
            | Self::Io { .. } => return None,
        })
    }

    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                Self::DiskFull { path }
            } else {
                Self::Io { doing, path, source }
            }
        }
    }
}

fn tail_of(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; it said:\n  {}", lines.join("\n  ")) }
}
