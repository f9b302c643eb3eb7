//! Where PostgreSQL's programs are.

use std::path::{Path, PathBuf};

use crate::error::ServerError;

/// The oldest major version that the platform works with.
pub const OLDEST: u32 = 14;

const DEBIAN: &str = "/usr/lib/postgresql";

/// A `bin` folder of one PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    major: u32,
    version: String,
}

impl Binaries {
    /// The installation in `folder`, or the newest in Debian's place.
    ///
    /// # Errors
    /// [`ServerError::NoPostgres`] if there is none of version [`OLDEST`] or later.
    pub fn find(folder: Option<&Path>) -> Result<Self, ServerError> {
        let none = || ServerError::NoPostgres { place: folder.map(Path::to_owned), oldest: OLDEST };
        match folder {
            Some(folder) => Self::probe(folder).ok_or_else(none),
            None => Self::newest_in(Path::new(DEBIAN)).ok_or_else(none),
        }
    }

    fn newest_in(root: &Path) -> Option<Self> {
        let versions = std::fs::read_dir(root).ok()?;
        versions.filter_map(|entry| Self::probe(&entry.ok()?.path().join("bin"))).max_by_key(|found| found.major)
    }

    /// Asks `postgres --version`: `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
    fn probe(folder: &Path) -> Option<Self> {
        for program in ["initdb", "pg_basebackup"] {
            if !folder.join(program).is_file() {
                return None;
            }
        }
        let output = std::process::Command::new(folder.join("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let version = text.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?.to_owned();
        let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
        let major: u32 = digits.parse().ok()?;
        (major >= OLDEST).then(|| Self { folder: folder.to_owned(), major, version })
    }

    /// The path of one program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `15`.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// `15.14`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_one_is_found() {
        let found = Binaries::find(None).unwrap();
        assert!(found.major() >= OLDEST);
        assert!(found.version().starts_with(&found.major().to_string()));
        assert_eq!(Binaries::find(Some(found.folder())).unwrap(), found);
    }

    #[test]
    fn none_is_a_clear_error() {
        let empty = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(empty.path())).unwrap_err();
        assert!(error.to_string().starts_with("no PostgreSQL of version 14 or later was found in /"));
        assert!(error.hint().unwrap().contains("apt install postgresql-15"));
    }
}
