//! A pack: a domain in SQL and TOML, read from a folder or from the binary.
//!
//! Invariants: what one file names in another exists (tiles → reports, drills → reports and their
//! parameters, the default dashboard); migrations are in the order in which they run. Models are
//! handed on as text: the model crate parses them.

mod dashboard;
mod files;
mod head;
mod manifest;
mod migrations;
pub(crate) mod report;
mod script;
pub mod sql;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_contract::report::ReportCatalog;

use crate::{
    diagnostic::{Diagnostic, Diagnostics, suggest},
    error::ConfigError,
};

pub use manifest::Role;
pub use migrations::{Migration, MigrationKind, Version};
pub use script::Script;

/// A parsed pack.
#[derive(Debug, Clone)]
pub struct Pack {
    pub name: String,
    pub title: String,
    pub description: String,
    pub version: String,
    /// Made on the primary.
    pub database: String,
    /// That its tables are in.
    pub schema: String,
    /// ISO 4217.
    pub currency: Option<String>,
    pub roles: Vec<Role>,
    /// Versioned by version, each followed by its undo, then repeatable by description.
    pub migrations: Vec<Migration>,
    /// `models/*.toml`, by name.
    pub models: Vec<TextFile>,
    pub catalog: ReportCatalog,
    /// `generate/*`, by name: they run in this order.
    pub generate: Vec<TextFile>,
    /// `simulate/*.sql`, by name.
    pub simulate: Vec<Script>,
    /// `checks/*.sql`, by name: each finds rows of the pack's database that must not be.
    pub checks: Vec<TextFile>,
    files: Arc<BTreeMap<String, String>>,
}

/// A file of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// For errors: the whole path on disk, or `packs/NAME/…` for an embedded pack.
    pub path: PathBuf,
    /// The file's name without its folder.
    pub name: String,
    pub text: String,
}

impl Pack {
    /// Reads a pack's folder.
    ///
    /// # Errors
    /// [`ConfigError::NoPack`] if there is no `pack.toml`; [`ConfigError::Invalid`] with every
    /// mistake of every file.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        if !folder.join("pack.toml").is_file() {
            return Err(ConfigError::NoPack { folder: folder.to_owned(), known: Self::embedded_names() });
        }
        Self::parse(folder, files::from_folder(folder)?)
    }

    /// A pack that comes with the program.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPack`] naming those that exist.
    pub fn embedded(name: &str) -> Result<Self, ConfigError> {
        match files::embedded(name) {
            Some(files) => Self::parse(&Path::new("packs").join(name), files),
            None => {
                let known = Self::embedded_names();
                let near = crate::diagnostic::nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
                Err(ConfigError::UnknownPack { name: name.to_owned(), known, near })
            }
        }
    }

    /// The packs that come with the program.
    #[must_use]
    pub fn embedded_names() -> Vec<String> {
        files::embedded_names()
    }

    /// What `--pack` means: a folder if it is one or has a slash, else a pack of the program.
    ///
    /// # Errors
    /// As [`Pack::load`] and [`Pack::embedded`].
    pub fn find(name_or_folder: &str) -> Result<Self, ConfigError> {
        let folder = Path::new(name_or_folder);
        if name_or_folder.contains('/') || folder.join("pack.toml").is_file() {
            return Self::load(folder);
        }
        Self::embedded(name_or_folder)
    }

    /// Parses a pack's files (relative path → text); `origin` is put before the paths in errors.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every mistake of every file.
    pub fn parse(origin: &Path, files: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut found = Vec::new();
        let manifest = manifest::parse(&origin.join("pack.toml"), text_of(&files, "pack.toml"), &mut found);
        let migrations = migrations::parse(origin, &files, &mut found);
        let (reports, drills) = report::parse_all(origin, &files, &mut found);
        let dashboards = dashboard::parse_all(origin, &files, &reports, &mut found);
        report::check_drills(&reports, &drills, &mut found);
        let simulate = script::parse_all(origin, &files, &mut found);
        if let Some((default, place)) = &manifest.default_dashboard
            && !dashboards.iter().any(|d| d.slug == *default)
        {
            let slugs: Vec<&str> = dashboards.iter().map(|d| d.slug.as_str()).collect();
            found.push(Diagnostic {
                message: format!("there is no dashboard called `{default}`"),
                hint: suggest(default, "dashboards", &slugs),
                ..place.clone()
            });
        }
        if !found.is_empty() {
            return Err(ConfigError::Invalid(Diagnostics(found)));
        }
        Ok(Self {
            name: manifest.name,
            title: manifest.title,
            description: manifest.description,
            version: manifest.version,
            database: manifest.database,
            schema: manifest.schema,
            catalog: ReportCatalog {
                reports: reports.into_iter().map(Arc::new).collect(),
                dashboards: dashboards.into_iter().map(Arc::new).collect(),
                currency: manifest.currency.clone(),
                default_dashboard: manifest.default_dashboard.map(|(slug, _)| slug),
            },
            currency: manifest.currency,
            roles: manifest.roles,
            migrations,
            models: text_files(origin, &files, "models", &["toml"]),
            generate: text_files(origin, &files, "generate", &["sql", "toml"]),
            simulate,
            checks: text_files(origin, &files, "checks", &["sql"]),
            files: Arc::new(files),
        })
    }

    /// The text of any file of the pack, by its path within it: `berka/10_clients.sql`.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// The files directly in a folder of the pack, by name.
    pub fn folder<'p>(&'p self, folder: &'p str) -> impl Iterator<Item = (&'p str, &'p str)> {
        in_folder(&self.files, folder)
    }

    /// The roles that may log in: each has a password.
    pub fn login_roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().filter(|r| r.login).map(|r| r.name.as_str())
    }

    /// Writes a copy that the user owns into `folder`, which is made.
    ///
    /// # Errors
    /// [`ConfigError::Write`].
    pub fn write_to(&self, folder: &Path) -> Result<(), ConfigError> {
        files::write(&self.files, folder)
    }
}

fn text_of<'f>(files: &'f BTreeMap<String, String>, path: &str) -> &'f str {
    files.get(path).map_or("", String::as_str)
}

/// `(name, text)` of the files directly in `folder`.
fn in_folder<'f>(files: &'f BTreeMap<String, String>, folder: &'f str) -> impl Iterator<Item = (&'f str, &'f str)> {
    files.iter().filter_map(move |(path, text)| {
        let name = path.strip_prefix(folder)?.strip_prefix('/')?;
        (!name.contains('/')).then_some((name, text.as_str()))
    })
}

fn text_files(origin: &Path, files: &BTreeMap<String, String>, folder: &str, extensions: &[&str]) -> Vec<TextFile> {
    in_folder(files, folder)
        .filter(|(name, _)| name.rsplit_once('.').is_some_and(|(_, e)| extensions.contains(&e)))
        .map(|(name, text)| TextFile {
            path: origin.join(folder).join(name),
            name: name.to_owned(),
            text: text.to_owned(),
        })
        .collect()
}
