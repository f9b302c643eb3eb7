//! Backups of a PostgreSQL cluster (15 and later): data, log, restore, proof.
//!
//! [`create()`] copies a running server's data directory into a [`repo::Repository`], [`wal::receive()`] brings its log
//! there ([`wal::fetch()`] and a [`wal::Spool`] bring it to other servers), [`restore()`] makes a data directory of both again, [`verify()`] and [`prove()`] show that this would work
//! ([`contents::record`] keeps what a proof compares),
//! [`retention::expire`] removes what is not needed any more.
//!
//! # Layout of a repository
//!
//! ```text
//! <system id>/                                   of the cluster, as in pg_control; in decimal
//!   backups/<label>/                             label: time of the start, and four random characters
//!     manifest.json                              written last: without it there is no backup
//!     files.json.zst[.age]                       the files with modes, lengths and places; backup_label
//!     pack-<number>.zst[.age]                    the content of files
//!     begun-<number>.zst[.age]                   as long as the backup has not ended: what its packs hold
//!     contents.<content>.<stored>.zst[.age]      rows and digests of the tables, if they were recorded: after the manifest
//!   dumps/<label>/                               a logical backup: manifest.json, and files in parts
//!   proofs/<label>.<time>.json                   what was restored and checked; time in microseconds since 1970
//!   proofs/<label>.<time>.failed.zst[.age]       what should have been, and why it failed
//!   held/<label>.json                            this backup stays, whatever retention says
//!   wal/
//!     archive.json                               the size of a segment
//!     <timeline>/<segment>.<content>.<stored>.zst[.age]
//!     <timeline>/<segment>.partial/<from>-<to>.<content>.<stored>.zst[.age]
//!     <timeline>/<timeline>.history.<content>.<stored>.zst[.age]
//! ```
//!
//! Nothing but the repository and a key is needed to restore. Every object is compressed with zstd and then encrypted
//! in the [age](https://age-encryption.org/v1) format for one or more X25519 recipients, so that
//! `age -d -i key.txt pack-00000.zst.age | zstd -d` gives its content; the names of unencrypted ones do not end with
//! `.age`. The two manifests of JSON and the proofs are not sealed: they hold labels, positions, times, sizes, checksums and the paths of
//! tablespaces.
//!
//! `manifest.json`, `archive.json`, the list of files and `contents` are `{"blake3":"…","content":{…}}`, where the checksum is of the
//! very bytes of the content; `content.format` is 1. The manifest names each object that a restore of its backup needs with the
//! BLAKE3 of its stored bytes; `contents` is for proofs, comes later if at all, and nobody misses it if it is lost. A file of the log, and `contents`, carry their checksums in the name, 32 hexadecimal digits of BLAKE3 each, of the content
//! and of the stored bytes; `from` and `to` are where in the segment a part lies.
//!
//! A pack's content is parts of files, one after the other; the list of files says where each begins, how long it is, its
//! BLAKE3, and where in the file it belongs. In an incremental backup a part may be single pages (`pages`: first block and
//! number), and in a part with `steps` pages of alike items are kept as differences (module `steps` says how to undo that; the
//! BLAKE3 is of what they were); and a file that rests on its parent (`on_parent`) is the parent's with these written over it, cut to length.
//!
//! # Invariants
//!
//! - A backup counts once its manifest is there, and the manifest is written after all else, the needed log included.
//! - An object never changes. The same file of the log twice is fine; the same name with other content is an error.
//! - The server is told that log is safe after the repository has it durably, never before.
//! - Whoever only writes full backups and log needs no secret, only the recipients. An incremental backup needs a key: it reads
//!   its parent's list of files.
//! - Everything is checked before it is written into a data directory, and `pg_control` is written last.
//! - A page is judged by its checksum unless it is newer than the backup's start, and taken into an incremental backup if
//!   it is not older than the *parent's* start. Files that the parent does not have are taken whole (`CREATE DATABASE …
//!   STRATEGY FILE_COPY` leaves old positions), forks without positions (`_vm`, `_fsm`) and all other files by checksum.
//! - A backup that did not end is never continued; what the next one reads anew and finds in its packs is copied from there.
//! - What decides is pure: [`plan`](mod@plan), [`retention::decide`], the choice of files, packs, pages and chains.
//!
//! # Not here
//!
//! Servers whose data directory is on another host.
//!
//! # Example
//!
//! ```no_run
//! # async fn example(params: millrace_pg::ConnectParams, key: millrace_base::Secret) -> Result<(), millrace_backup::BackupError> {
//! use millrace_backup::{
//!     CreateOptions, Kind, create, list,
//!     repo::{Location, Repository},
//!     seal::{Encryption, Keys, Sealing},
//! };
//! use tokio_util::sync::CancellationToken;
//!
//! let sealing = Sealing::new(Encryption::to(["age1…"])?);
//! let repo = Repository::open(&Location::Folder("/backups".into()), sealing, Keys::parse(&key)?)?;
//! let options = CreateOptions {
//!     params,
//!     primary: None,
//!     data_dir: "/var/lib/postgresql/15/main".into(),
//!     kind: Kind::Incremental,
//!     threads: 2,
//!     bytes_per_second_max: None,
//!     fast_checkpoint: true,
//!     wal_wait: Some(std::time::Duration::from_secs(300)),
//! };
//! let created = create(&repo, &options, &|step| tracing::info!(?step), &CancellationToken::new()).await?;
//! let catalog = list(&repo, created.manifest.system_id).await?;
//! assert_eq!(catalog.backups.last(), Some(&created.manifest));
//! # Ok(())
//! # }
//! ```

pub mod base;
mod catalog;
pub mod contents;
mod create;
mod delta;
pub mod dump;
mod error;
mod manifest;
mod pack;
mod page;
pub mod plan;
pub mod proofs;
mod prove;
mod recovery;
pub mod repo;
mod restore;
mod resume;
pub mod retention;
mod scan;
pub mod seal;
mod session;
mod steps;
mod unpack;
mod verify;
pub mod wal;

pub use catalog::{Catalog, list};
pub use create::{CreateOptions, Created, create};
pub use error::BackupError;
pub use manifest::{Kind, Manifest, Object, Tablespace};
pub use prove::{Proof, ProveOptions, Rule, prove};
pub use recovery::WalSource;
pub use restore::{Files, RestoreOptions, Restored, end_restore, plan as plan_restore, restore};
pub use verify::{Finding, VerifyOptions, VerifyReport, verify};

/// Told while work goes on; called from the task that works, so it must return soon.
pub type ProgressFn<'a> = dyn Fn(Step) + Send + Sync + 'a;

/// What is done just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A backup waits for the server's checkpoint.
    Checkpoint,
    Copy {
        bytes: u64,
        bytes_total: u64,
    },
    /// A restore found so much there already.
    Kept {
        bytes: u64,
    },
    /// The log's archive is waited for.
    WaitForLog {
        until: millrace_base::Lsn,
    },
    /// A restore brings log.
    Log {
        segments: usize,
        segments_total: usize,
    },
    Verify {
        objects: usize,
        objects_total: usize,
    },
    /// Tables of a database are read, for a proof to compare.
    Tables {
        done: usize,
        total: usize,
    },
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(BackupError::Panicked(error.to_string())),
        Err(_) => Err(BackupError::Cancelled),
    }
}
