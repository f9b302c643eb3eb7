//! The DuckDB file: opened once in a process, handed out as connections.
//!
//! Invariants: one [`Engine`] owns the file; every connection of the process comes from
//! [`Engine::connect`]; pinned states are read transactions that stay open until released, and while
//! one is open the file is not checkpointed (an open reader would block it, peers' measurements).
//! After a fatal error DuckDB answers nothing until the file was closed; it is opened anew only when the last
//! connection to it has gone, because its locks belong to the process and not to who opened it.
//! Non-goals: writing ([`crate::writer`]) and answering readers ([`crate::reader`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use duckdb::{Config, Connection};
use millrace_base::{Micros, files, ident::Literal};

use crate::{error::WarehouseError, statement};

/// How much of the machine the engine may use.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// DuckDB's notation: `800MB`. Counts DuckDB's buffers, not the whole process.
    pub memory_limit: String,
    pub threads: usize,
    /// Where operators spill that do not fit into memory; made if absent.
    pub temp_directory: PathBuf,
}

/// A connection to the file, with its own transaction and settings.
pub struct Session {
    // dropped in this order
    connection: Connection,
    seat: Seat,
}

/// The sessions that hold the file open.
#[derive(Default)]
struct Users {
    sessions: Mutex<usize>,
    left: Condvar,
}

/// One of them.
struct Seat(Arc<Users>);

impl Seat {
    fn take(users: &Arc<Users>) -> Self {
        *lock(&users.sessions) += 1;
        Self(users.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *lock(&self.0.sessions) -= 1;
        self.0.left.notify_all();
    }
}

impl Deref for Session {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

/// The file in this process.
enum File {
    Open {
        root: Connection,
        users: Arc<Users>,
    },
    /// Set by [`Engine::reopen`]; ends when it succeeds.
    Closed {
        users: Arc<Users>,
    },
}

/// An open warehouse file.
pub struct Engine {
    path: PathBuf,
    options: EngineOptions,
    file: Mutex<File>,
    /// Sessions that wait for a statement of a reader.
    idle: Mutex<Vec<Session>>,
    pins: Mutex<BTreeMap<String, Arc<Mutex<Session>>>>,
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
            options,
            file: Mutex::new(File::Open { root, users: Arc::default() }),
            idle: Mutex::default(),
            pins: Mutex::new(BTreeMap::new()),
            abandoned: Mutex::default(),
            confirmed_at: AtomicI64::new(0),
        }))
    }

    /// Another connection to the same file: its own transaction and settings.
    ///
    /// # Errors
    /// If the engine refuses (out of memory), or the file is closed after a fatal error.
    pub fn connect(&self) -> Result<Session, WarehouseError> {
        let session = match &*lock(&self.file) {
            File::Open { root, users } => Session { seat: Seat::take(users), connection: root.try_clone()? },
            File::Closed { .. } => return Err(WarehouseError::Reopening { path: self.path.clone() }),
        };
        session.execute_batch(USE)?;
        Ok(session)
    }

    /// Closes the file and opens it again: the only way on after a fatal error of the engine. Pinned states
    /// are lost. Waits for statements that still run; the caller has dropped its own session.
    ///
    /// # Errors
    /// If statements still run after `deadline`, or the file cannot be opened. It stays closed then, and
    /// may be tried again.
    pub(crate) fn reopen(&self, deadline: Duration) -> Result<(), WarehouseError> {
        let users = {
            let mut file = lock(&self.file);
            let users = match &*file {
                File::Open { users, .. } | File::Closed { users } => users.clone(),
            };
            *file = File::Closed { users: users.clone() };
            users
        };
        lock(&self.pins).clear();
        lock(&self.idle).clear();
        let waited = users.left.wait_timeout_while(lock(&users.sessions), deadline, |sessions| *sessions > 0);
        let (sessions, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *sessions > 0 {
            return Err(WarehouseError::Reopening { path: self.path.clone() });
        }
        drop(sessions);
        let root =
            open_file(&self.path, &self.options).map_err(|source| WarehouseError::opening(&self.path, source))?;
        *lock(&self.file) = File::Open { root, users: Arc::default() };
        Ok(())
    }

    /// A session that was given back, if there is one.
    pub(crate) fn take_idle(&self) -> Option<Session> {
        lock(&self.idle).pop()
    }

    /// Keeps a session for the next statement, unless the file was closed meanwhile.
    pub(crate) fn give_back(&self, session: Session) {
        // held over the push, so that none slips in after a closing has emptied the list
        let file = lock(&self.file);
        if matches!(&*file, File::Open { users, .. } if Arc::ptr_eq(users, &session.seat.0)) {
            lock(&self.idle).push(session);
        }
    }

    /// Threads that the engine works with.
    pub(crate) fn threads(&self) -> usize {
        self.options.threads
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
    pub fn pinned(&self, name: &str) -> Option<Arc<Mutex<Session>>> {
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
        // a long task of one statement lets others have their turn
        .with("scheduler_process_partial", "true")?
        .with("perfect_ht_threshold", statement::ARRAY_BITS.to_string())?
        .with("integer_division", "true")?
        .with("default_null_order", "nulls_last_on_asc_first_on_desc")?
        .with("autoinstall_known_extensions", "false")?
        .enable_autoload_extension(true)
}
