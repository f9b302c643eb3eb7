//! What goes wrong with migrations, by cause, each with what to do about it.

use std::time::Duration;

use millrace_pg::PgError;

/// Migrations were not applied, or are not what was applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("`{version}` of {script} is not a version")]
    BadVersion { version: String, script: String },
    #[error("{first} and {second} have the same version or name")]
    Twice { first: String, second: String },
    /// The text is not the one that ran.
    #[error("{script} was changed after it was applied (checksum {applied}, now {found})")]
    Changed { script: String, applied: i32, found: i32 },
    #[error("{script} was applied but is not among the migrations")]
    Missing { script: String },
    #[error("{script} has a lower version than {newest}, which was applied already")]
    OutOfOrder { script: String, newest: String },
    /// Left by another tool: this one leaves no such rows.
    #[error("the history says that {script} failed")]
    FailedBefore { script: String },
    #[error("{script} line {line}: {what} cannot be part of a migration")]
    Forbidden { script: String, line: usize, what: String },
    /// Nothing of the script is kept.
    #[error("{script}{} failed", line.map(|l| format!(" line {l}")).unwrap_or_default())]
    Failed {
        script: String,
        /// From 1: where the server points, or where the failed statement begins.
        line: Option<usize>,
        #[source]
        source: Box<PgError>,
    },
    #[error("another session migrates this database{}; waited {:.0} s", holder.map(|p| format!(" (server process {p})")).unwrap_or_default(), waited.as_secs_f64())]
    Locked { holder: Option<i32>, waited: Duration },
    #[error("cannot work on the history of migrations")]
    History(#[source] PgError),
}

impl MigrateError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadVersion { .. } => "write numbers with dots or underscores: V1_2__name.sql".to_owned(),
            Self::Twice { .. } => "give each migration its own".to_owned(),
            Self::Changed { .. } => "put the old text back and make the change in a new migration".to_owned(),
            Self::Missing { .. } => "put the file back; what was applied stays part of the pack".to_owned(),
            Self::OutOfOrder { newest, .. } => format!("give it a version above {newest}"),
            Self::FailedBefore { .. } => {
                "see what it left behind, then remove its row from public.flyway_schema_history".to_owned()
            }
            Self::Forbidden { .. } => {
                "a script and its row in the history are one transaction of the migrator's; remove the statement"
                    .to_owned()
            }
            Self::Locked { .. } => "wait for it, or end it with pg_terminate_backend".to_owned(),
            Self::Failed { source, .. } if source.sqlstate() == Some("55P03") => {
                "others hold locks on what it changes: see pg_blocking_pids, then try again; nothing was changed"
                    .to_owned()
            }
            Self::Failed { source, .. } => match source.hint() {
                Some(hint) => format!("{hint}; nothing of it was kept"),
                None => "correct it and migrate again; nothing of it was kept".to_owned(),
            },
            Self::History(source) => return source.hint(),
        })
    }
}
