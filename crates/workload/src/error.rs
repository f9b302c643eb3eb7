//! What goes wrong with loads and simulations, each with what to do about it.

use std::{io, path::PathBuf};

use millrace_pg::PgError;

/// Data was not loaded, or customers could not act.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("the pack has no {what}")]
    Absent { what: &'static str },
    #[error("{}: unknown parameter `:{name}`", path.display())]
    UnknownParameter { path: PathBuf, name: String },
    #[error("{} does not describe files", path.display())]
    BadDescription {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing was loaded.
    #[error("{} was not loaded", what.display())]
    Load {
        /// The pack's script or the file.
        what: PathBuf,
        #[source]
        source: Box<PgError>,
    },
    #[error("cannot work on {address}")]
    Connect {
        address: String,
        #[source]
        source: Box<PgError>,
    },
    /// The pack's statement itself is wrong, or the role may not run it.
    #[error("the operation \"{name}\" cannot run")]
    Operation {
        name: String,
        #[source]
        source: Box<PgError>,
    },
    #[error("a rate of {0} transactions a second makes no sense")]
    BadRate(f64),
    #[error(transparent)]
    Task(#[from] millrace_base::task::TaskError),
}

impl WorkloadError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Absent { what } => Some(format!("add {what} to the pack's folder, or use a pack that has them")),
            Self::UnknownParameter { .. } => {
                Some("generators know :scale, :seed and :today; operations know :r1, :r2, …".to_owned())
            }
            Self::BadDescription { .. } => {
                Some("write [[table]] with name, file and columns = [\"name type\", …]".to_owned())
            }
            Self::Read { .. } => Some("name the folder that the files are in".to_owned()),
            Self::Load { source, .. } | Self::Connect { source, .. } | Self::Operation { source, .. } => source.hint(),
            Self::BadRate(_) => Some("choose one above 0 and up to 10000".to_owned()),
            Self::Task(_) => None,
        }
    }
}
