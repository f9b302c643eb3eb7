//! The DuckDB file: opened once in a process, handed out as connections.
//!
//! Invariants: one [`Engine`] owns the file; every connection of the process comes from
//! [`Engine::connect`]; pinned states are read transactions that stay open until released, and while
//! one is open the file is not checkpointed (an open reader would block it, peers' measurements).
//! Non-goals: writing ([`crate::writer`]) and answering readers ([`crate::reader`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use duckdb::{Config, Connection};
use millrace_base::{Micros, files, ident::Literal};

use crate::{error::WarehouseError, index};

/// How much of the machine the engine may use.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// DuckDB's notation: `800MB`. Counts DuckDB's buffers, not the whole process.
    pub memory_limit: String,
    pub threads: usize,
    /// Where operators spill that do not fit into memory; made if absent.
    pub temp_directory: PathBuf,
}

/// An open warehouse file.
pub struct Engine {
    path: PathBuf,
    root: Mutex<Connection>,
    pins: Mutex<BTreeMap<String, Arc<Mutex<Connection>>>>,
    /// Names whose asker gave up before they were pinned.
    abandoned: Mutex<BTreeSet<String>>,
    confirmed_at: AtomicI64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the file, making it if it is absent, and prepares what every warehouse has
    /// (schemas `raw`, `staging`, `warehouse`, `audit`).
    ///
    /// # Errors
    /// If the file is damaged, belongs to a newer version, is open in another process, or its folder
    /// cannot be written; each says what to do.
    pub fn open(path: &Path, options: EngineOptions) -> Result<Arc<Self>, WarehouseError> {
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            files::create_dir_all(folder, 0o700)
                .map_err(|source| WarehouseError::Folder { path: folder.to_owned(), source })?;
        }
        files::create_dir_all(&options.temp_directory, 0o700)
            .map_err(|source| WarehouseError::Folder { path: options.temp_directory.clone(), source })?;
        let root = open_file(path, &options).map_err(|source| WarehouseError::opening(path, source))?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            root: Mutex::new(root),
            pins: Mutex::new(BTreeMap::new()),
            abandoned: Mutex::default(),
            confirmed_at: AtomicI64::new(0),
        }))
    }

    /// Another connection to the same file: its own transaction and settings.
    ///
    /// # Errors
    /// If the engine refuses (out of memory).
    pub fn connect(&self) -> Result<Connection, WarehouseError> {
        let connection = lock(&self.root).try_clone()?;
        connection.execute_batch(USE)?;
        Ok(connection)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fixes what a reader sees now under `name`; a state of the same name is let go.
    ///
    /// # Errors
    /// If the transaction cannot be opened.
    pub fn pin(&self, name: &str) -> Result<(), WarehouseError> {
        let connection = self.connect()?;
        connection.execute_batch("begin transaction read only")?;
        // the snapshot is taken by the first read
        connection.query_row("select count(*) from audit.watermarks", [], |row| row.get::<_, i64>(0))?;
        let mut pins = lock(&self.pins);
        if !lock(&self.abandoned).remove(name) {
            pins.insert(name.to_owned(), Arc::new(Mutex::new(connection)));
        }
        Ok(())
    }

    /// The connection whose open transaction is the pinned state; it must not be committed or rolled back.
    #[must_use]
    pub fn pinned(&self, name: &str) -> Option<Arc<Mutex<Connection>>> {
        lock(&self.pins).get(name).cloned()
    }

    /// Lets a pinned state go; unknown names are fine.
    pub fn release(&self, name: &str) {
        let pin = lock(&self.pins).remove(name);
        drop(pin);
    }

    /// Lets a pinned state go now, or as soon as it is pinned: for an asker who may give up before.
    /// A name is used once.
    pub fn abandon(&self, name: &str) {
        let mut pins = lock(&self.pins);
        if pins.remove(name).is_none() {
            lock(&self.abandoned).insert(name.to_owned());
        }
    }

    /// Whether any state is pinned.
    #[must_use]
    pub fn has_pins(&self) -> bool {
        !lock(&self.pins).is_empty()
    }

    /// When the warehouse last heard that nothing newer is waiting; kept in memory only.
    #[must_use]
    pub fn confirmed_at(&self) -> Micros {
        Micros(self.confirmed_at.load(Ordering::Acquire))
    }

    /// Set by the writer after a commit or an idle confirmation.
    pub(crate) fn confirm(&self, at: Micros) {
        self.confirmed_at.fetch_max(at.0, Ordering::AcqRel);
    }
}

/// A poisoned lock guards plain data here: what it holds is still good.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attached under a name of its own: opened directly, a file `warehouse.duckdb` would be a catalog
/// `warehouse`, and every `warehouse.table` ambiguous.
fn open_file(path: &Path, options: &EngineOptions) -> duckdb::Result<Connection> {
    let root = Connection::open_in_memory_with_flags(config(options)?)?;
    root.execute_batch(&format!("attach {} as millrace", Literal(&path.to_string_lossy())))?;
    root.execute_batch(USE)?;
    root.execute_batch(include_str!("../sql/layout.sql"))?;
    Ok(root)
}

const USE: &str = "use millrace";

fn config(options: &EngineOptions) -> duckdb::Result<Config> {
    let threads = i64::try_from(options.threads.max(1)).unwrap_or(i64::MAX);
    Config::default()
        .max_memory(&options.memory_limit)?
        .threads(threads)?
        .with("temp_directory", options.temp_directory.to_string_lossy())?
        // a scattered change costs 0.6 s a commit at the default of 16 MB
        .with("checkpoint_threshold", "512MB")?
        // joins with few keys are looked up in an index, where there is one
        .with("dynamic_or_filter_threshold", index::LOOKUP_KEYS_MAX.to_string())?
        .with("integer_division", "true")?
        .with("default_null_order", "nulls_last_on_asc_first_on_desc")?
        .with("autoinstall_known_extensions", "false")?
        .enable_autoload_extension(true)
}
