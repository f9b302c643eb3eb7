//! `secrets.toml`: generated passwords and keys, in a file that only its owner can read.
//!
//! Invariants: an open file is refused before it is read; values never appear in an error.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use millrace_base::{Secret, files};

use crate::{
    diagnostic::{Diagnostics, Source},
    error::ConfigError,
    schema,
    table::{Reader, parse_document, text},
};

/// The file's name in a platform's folder.
pub(crate) const FILE_NAME: &str = "secrets.toml";
/// Reads the warehouse; a pack may declare it on the primary as well.
const WAREHOUSE_READER: &str = "warehouse_reader";

/// Every password and key of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Of `postgres` on every server.
    pub superuser: Secret,
    /// Of `replicator`.
    pub replicator: Secret,
    /// Of `warehouse_reader` on the warehouse's port.
    pub warehouse_reader: Secret,
    /// Signs the console's sessions.
    pub console_session_key: Secret,
    /// Of `[etcd] user`.
    pub etcd: Option<Secret>,
    /// Opens backups: an age identity.
    pub backup_key: Option<Secret>,
    /// Of a bucket of S3: the access key and its secret.
    pub s3: Option<(Secret, Secret)>,
    /// The same of single buckets, by name.
    pub s3_of: BTreeMap<String, (Secret, Secret)>,
    /// Of Azure's storage: the account and its key.
    pub azure: Option<(Secret, Secret)>,
    /// The same of single containers, by name.
    pub azure_of: BTreeMap<String, (Secret, Secret)>,
    /// Of the pack's roles that may log in.
    pub roles: BTreeMap<String, Secret>,
}

impl Secrets {
    /// New ones, with a password for each of `roles`.
    #[must_use]
    pub fn generate<'r>(roles: impl IntoIterator<Item = &'r str>) -> Self {
        let mut secrets = Self {
            superuser: Secret::generate(),
            replicator: Secret::generate(),
            warehouse_reader: Secret::generate(),
            console_session_key: Secret::generate(),
            etcd: None,
            backup_key: None,
            s3: None,
            s3_of: BTreeMap::new(),
            azure: None,
            azure_of: BTreeMap::new(),
            roles: BTreeMap::new(),
        };
        secrets.complete(roles);
        secrets
    }

    /// Generates passwords for those of `roles` that have none; returns the names. A role that has
    /// a password of its own in the file keeps that one, on every server.
    pub fn complete<'r>(&mut self, roles: impl IntoIterator<Item = &'r str>) -> Vec<String> {
        let mut added = Vec::new();
        for role in roles {
            if !self.roles.contains_key(role) {
                let password =
                    if role == WAREHOUSE_READER { self.warehouse_reader.clone() } else { Secret::generate() };
                self.roles.insert(role.to_owned(), password);
                added.push(role.to_owned());
            }
        }
        added
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError::SecretsOpen`] if group or others may do anything with it;
    /// [`ConfigError::NoSecrets`], [`ConfigError::Read`], [`ConfigError::Invalid`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::NoSecrets { path: path.to_owned() },
            _ => ConfigError::Read { path: path.to_owned(), source },
        };
        // the mode of the file that is read, not of one that takes its place in between
        let mut file = fs::File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(ConfigError::SecretsOpen { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => ConfigError::NotText { path: path.to_owned() },
            _ => read(source),
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, document: &str) -> Result<Self, ConfigError> {
        let source = Source::new(path, document);
        let parsed = parse_document(&source);
        let table = Reader::new(&source, &schema::SECRETS, Some(parsed.get_ref()), 0..0);
        let secret = |name| {
            table
                .read(name, |v| match text(v)? {
                    empty if empty.is_empty() => {
                        Err(crate::table::Problem::new("must not be empty", "put a password there"))
                    }
                    written => Ok(Secret::new(written)),
                })
                .map_or_else(|| Secret::new(""), |s| s.value)
        };
        let (superuser, replicator) = (secret("superuser"), secret("replicator"));
        let (warehouse_reader, console_session_key) = (secret("warehouse_reader"), secret("console_session_key"));
        let etcd = table.text_maybe("etcd").map(Secret::new);
        let backup_key = table.text_maybe("backup_key").map(Secret::new);
        let pair = |first, second| {
            let [first, second] = [first, second].map(|name| table.text_maybe(name).map(Secret::new));
            first.zip(second)
        };
        let (s3, azure) = (pair("s3_access_key", "s3_secret_key"), pair("azure_account", "azure_key"));
        let single = |name, keys, [of, first, second]: [&'static str; 3]| {
            let mut all = BTreeMap::new();
            for table in table.tables(name, keys).unwrap_or_default() {
                let read = |name| table.read(name, text).map(|read| read.value);
                if let (Some(of), Some(first), Some(second)) = (read(of), read(first), read(second)) {
                    all.insert(of, (Secret::new(first), Secret::new(second)));
                }
            }
            all
        };
        let s3_of = single("s3", &schema::S3_KEYS, ["bucket", "access_key", "secret_key"]);
        let azure_of = single("azure", &schema::AZURE_KEYS, ["container", "account", "key"]);
        let mut roles = BTreeMap::new();
        for (role, _, value) in table.free_table("roles") {
            match text(value.get_ref()) {
                Ok(password) if !password.is_empty() => {
                    roles.insert(role.to_owned(), Secret::new(password));
                }
                Ok(_) => table.wrong(Some(value.span()), format!("role `{role}`: the password is empty"), None),
                Err(problem) => table.wrong(Some(value.span()), format!("role `{role}`: {}", problem.message), None),
            }
        }
        let mut found = source.into_found();
        if !found.is_empty() {
            for diagnostic in &mut found {
                conceal(diagnostic);
            }
            return Err(ConfigError::Invalid(Diagnostics(found)));
        }
        Ok(Self {
            superuser,
            replicator,
            warehouse_reader,
            console_session_key,
            etcd,
            backup_key,
            s3,
            s3_of,
            azure,
            azure_of,
            roles,
        })
    }

    /// Puts the keys of backups into the file, in which everything else stays as it is.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn put_backup_key(path: &Path, key: &Secret) -> Result<(), ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let why = |error: toml_edit::TomlError| ConfigError::Edit { path: path.to_owned(), why: error.to_string() };
        let mut document: toml_edit::DocumentMut = text.parse().map_err(why)?;
        document.insert("backup_key", toml_edit::value(key.reveal()));
        files::write_atomic(path, document.to_string().as_bytes(), 0o600)
            .map_err(|source| ConfigError::Write { path: path.to_owned(), source })
    }

    /// Writes the file with mode 0600, whole or not at all.
    ///
    /// # Errors
    /// [`ConfigError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), ConfigError> {
        let mut document = toml_edit::DocumentMut::new();
        document.decor_mut().set_prefix(
            "# Made by `millrace init`. Only its owner may read it (mode 0600); keep it out of version control.\n",
        );
        for (name, secret) in [
            ("superuser", &self.superuser),
            ("replicator", &self.replicator),
            ("warehouse_reader", &self.warehouse_reader),
            ("console_session_key", &self.console_session_key),
        ] {
            document.insert(name, toml_edit::value(secret.reveal()));
        }
        if let Some(key) = &self.backup_key {
            document.insert("backup_key", toml_edit::value(key.reveal()));
        }
        let mut roles = toml_edit::Table::new();
        for (name, secret) in &self.roles {
            roles.insert(name, toml_edit::value(secret.reveal()));
        }
        document.insert("roles", toml_edit::Item::Table(roles));
        files::write_atomic(path, document.to_string().as_bytes(), 0o600)
            .map_err(|source| ConfigError::Write { path: path.to_owned(), source })
    }
}

/// Hides what stands right of the equals sign: an error must not show a password.
fn conceal(diagnostic: &mut crate::Diagnostic) {
    let Some((key, _)) = diagnostic.snippet.split_once('=') else {
        // a line without a key may be a password's second half
        diagnostic.snippet = "…".to_owned();
        diagnostic.column = 1;
        diagnostic.width = 1;
        diagnostic.hint = None;
        return;
    };
    let shown = key.chars().count() + 1;
    if diagnostic.column > shown {
        diagnostic.column = shown + 2;
        diagnostic.width = 1;
        diagnostic.hint = None;
    }
    diagnostic.snippet = format!("{key}= …");
}
