//! Why configuration, secrets or a pack could not be read or written.

use std::{io, path::PathBuf};

use millrace_base::tls::TlsError;

use crate::diagnostic::Diagnostics;

/// Why configuration, secrets or a pack could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Each with file, line, column and a hint.
    #[error("{0}")]
    Invalid(Diagnostics),
    #[error("there is no platform in {}", folder.display())]
    NoPlatform { folder: PathBuf },
    #[error("the platform's secrets are gone: {} does not exist", path.display())]
    NoSecrets { path: PathBuf },
    #[error("there is no pack in {}", folder.display())]
    NoPack { folder: PathBuf, known: Vec<String> },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A text that a person wrote in another way than this program can add to.
    #[error("cannot change {}: {why}", path.display())]
    Edit { path: PathBuf, why: String },
    #[error("{} is open to others (mode {mode:04o})", path.display())]
    SecretsOpen { path: PathBuf, mode: u32 },
    #[error("there is no pack called `{name}`")]
    UnknownPack { name: String, known: Vec<String>, near: Option<String> },
    #[error("{} is not empty: it holds `{entry}`", folder.display())]
    NotEmpty { folder: PathBuf, entry: String },
    #[error("{} holds a platform already", folder.display())]
    PlatformExists { folder: PathBuf },
    #[error("ports {first} to {last} do not exist: the greatest is 65535")]
    PortRange { first: u16, last: u32 },
    #[error("cannot make the platform's certificates")]
    Tls(#[from] TlsError),
}

impl ConfigError {
    /// What to do, where the message does not say it already.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid(_) | Self::Read { .. } | Self::Write { .. } | Self::Tls(_) => None,
            Self::NoPlatform { folder } => Some(format!(
                "make one with `millrace init --pack loans {}`, or name another folder with --dir",
                folder.display()
            )),
            Self::NoSecrets { .. } => {
                Some("restore the file from a copy: the servers know the passwords that were in it".to_owned())
            }
            Self::NoPack { known, .. } => {
                Some(format!("a pack's folder holds a pack.toml; packs that come with millrace: {}", known.join(", ")))
            }
            Self::Edit { .. } => Some("change the file by hand".to_owned()),
            Self::NotText { .. } => Some("save the file as UTF-8".to_owned()),
            Self::SecretsOpen { path, .. } => Some(format!("close it with: chmod 600 {}", path.display())),
            Self::UnknownPack { known, near, .. } => Some(match near {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => {
                    "no packs come with this build; name a folder that holds a pack.toml".to_owned()
                }
                None => format!(
                    "packs that come with millrace: {}; or name a folder that holds a pack.toml",
                    known.join(", ")
                ),
            }),
            Self::NotEmpty { folder, .. } => Some(format!("choose a new folder, or empty {} first", folder.display())),
            Self::PlatformExists { folder } => Some(format!("start it with `millrace up --dir {}`", folder.display())),
            Self::PortRange { .. } => Some("choose a lower first port".to_owned()),
        }
    }
}
