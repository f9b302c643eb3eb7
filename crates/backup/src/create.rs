//! Makes a backup of a running server whose data directory is on this host.
//!
//! Invariants: a backup counts once its manifest is there, which is written last, after the log that it needs has
//! reached the repository; what a failed run leaves counts for nothing and is removed by a later collection, or here where
//! the next run could take nothing of it over.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use millrace_base::Lsn;
use millrace_pg::{ConnectParams, control_file};
use tokio_util::sync::CancellationToken;

use crate::{
    ProgressFn, Step,
    catalog::{self, folder},
    error::BackupError,
    manifest::{self, FORMAT, FileEntry, FileList, Kind, Manifest, Object, Piece},
    pack::{self, Job, Outcome, Parent, Throttle},
    plan,
    repo::Repository,
    resume::{self, Known, Note, NotedPack},
    scan::{self, CONTROL_FILE, Scan},
    session::{Session, Stopped, timeline_of},
    wal::{self, History},
};

/// Between notes of what a later run could take over.
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// Packs of other runs that are copied at a time.
const COPIES: usize = 4;

/// How a backup is to be made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// A superuser, or a role that may call `pg_backup_start` and read the settings. Always the same database: the lock
    /// that keeps two backups of a server apart is one of a database.
    pub params: ConnectParams,
    /// The primary, if `params` are of a replica: it is asked for a checkpoint when `fast_checkpoint` is wanted. Without it
    /// the backup begins at the replica's last restart point, and has to replay all log since then.
    pub primary: Option<ConnectParams>,
    /// The server's data directory, on this host.
    pub data_dir: PathBuf,
    /// An incremental one becomes a full one where there is nothing to build on; the result says why.
    pub kind: Kind,
    pub threads: usize,
    /// Read no more than this; `None`: as fast as it goes.
    pub bytes_per_second_max: Option<u64>,
    /// Ask for an immediate checkpoint, rather than waiting for a spread one.
    pub fast_checkpoint: bool,
    /// How long the log's archive may take to bring what the backup needs. `None`: it is not waited for, and the backup
    /// counts although it may not be of use yet.
    pub wal_wait: Option<Duration>,
}

/// A backup that was made.
#[derive(Debug, Clone)]
pub struct Created {
    pub manifest: Manifest,
    /// Why it is a full one although an incremental one was wanted.
    pub full_because: Option<String>,
    /// So much, before compression, was in the repository already: runs that did not end had brought it there.
    pub taken_over_bytes: u64,
}

/// Makes a backup.
///
/// # Errors
/// If it cannot be made, is cancelled, or its log does not reach the repository in time. Then nothing that counts is
/// left; what the next one can take over stays for a day.
pub async fn create(
    repo: &Repository,
    options: &CreateOptions,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> Result<Created, BackupError> {
    let session = Session::open(&options.params).await?;
    let system_id = session.facts.system_id;
    let notes = Mutex::default();
    let run = Run { repo, options, session, progress, stop, system_id, notes };
    let made = run.whole().await;
    // a statement may still run for one that was cancelled
    if !stop.is_cancelled() {
        run.session.release().await;
    }
    made
}

/// `20261122T184200Z-3f9a`: sorted by time, never the same twice.
pub(crate) fn label() -> String {
    use millrace_base::Clock;
    let now = millrace_base::SystemClock::new().wall();
    let time = now.to_timestamp().map_or_else(|| now.0.to_string(), |time| time.strftime("%Y%m%dT%H%M%SZ").to_string());
    let mut random = millrace_base::Secret::generate().reveal().to_ascii_lowercase();
    random.truncate(4);
    format!("{time}-{random}")
}

/// The data directory must be this server's own, not a copy.
fn check_place(options: &CreateOptions, session: &Session) -> Result<(), BackupError> {
    let control = control_file::read(&options.data_dir)?;
    let same = |path: &str| {
        let (a, b) = (options.data_dir.canonicalize(), PathBuf::from(path).canonicalize());
        a.ok().zip(b.ok()).is_none_or(|(a, b)| a == b)
    };
    if control.system_id == session.facts.system_id && same(&session.facts.data_directory) {
        return Ok(());
    }
    Err(BackupError::Unfit(format!(
        "{} is not the data directory of the server at {}, which says {}",
        options.data_dir.display(),
        options.params.address(),
        session.facts.data_directory
    )))
}

struct Run<'a> {
    repo: &'a Repository,
    options: &'a CreateOptions,
    session: Session,
    progress: &'a ProgressFn<'a>,
    stop: &'a CancellationToken,
    system_id: u64,
    notes: Mutex<Notes>,
}

/// Finished packs that are not noted yet, and the names of those that are.
#[derive(Default)]
struct Notes {
    waiting: Vec<NotedPack>,
    noted: BTreeSet<String>,
    written: usize,
}

impl Run<'_> {
    async fn whole(&self) -> Result<Created, BackupError> {
        check_place(self.options, &self.session)?;
        let there = catalog::list(self.repo, self.system_id).await?;
        let left: Vec<String> = there.unfinished.into_iter().map(|(label, _)| label).collect();
        let known = Known::load(self.repo, self.system_id, &left).await?;
        let label = label();
        let made = tokio::select! {
            made = self.make(&label, self.possible_parents(there.backups), known) => made,
            // the futures of uploads are dropped; what they have written is looked at below
            () = self.stop.cancelled() => Err(BackupError::Cancelled),
        };
        match &made {
            Ok(_) => {
                let place = folder(self.system_id, &label);
                if let Err(error) = resume::forget(self.repo, &place).await {
                    tracing::debug!(label, %error, "notes of a backup that has ended are not removed");
                }
            }
            Err(error) => {
                if let Err(error) = self.leave(&label, error).await {
                    tracing::warn!(label, %error, "what a failed backup left in the repository is not removed yet");
                }
            }
        }
        made
    }

    /// After a failure: keeps what the next run can take over, if that is much, and removes what is left besides.
    async fn leave(&self, label: &str, error: &BackupError) -> Result<(), BackupError> {
        let place = folder(self.system_id, label);
        // it may be there although the answer was an error
        self.repo.delete(&format!("{place}/manifest.json")).await?;
        // on a full disk the log needs the room
        let noted = self.notes(|notes| notes.written > 0) && error.may_pass() && !error.is_full();
        if !noted {
            return catalog::remove(self.repo, self.system_id, label).await;
        }
        self.note(label).await?;
        let noted = self.notes(|notes| std::mem::take(&mut notes.noted));
        for listed in self.repo.list(&place).await? {
            let name = listed.name.rsplit('/').next().unwrap_or_default();
            if !resume::is_note(name) && !noted.contains(name) {
                self.repo.delete(&listed.name).await?;
            }
        }
        Ok(())
    }

    fn notes<T>(&self, with: impl FnOnce(&mut Notes) -> T) -> T {
        // a holder that panicked left nothing half done
        with(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what has been finished since the last time.
    async fn note(&self, label: &str) -> Result<(), BackupError> {
        let (packs, number) = self.notes(|notes| (std::mem::take(&mut notes.waiting), notes.written));
        if packs.is_empty() {
            return Ok(());
        }
        self.notes(|notes| {
            notes.written += 1;
            notes.noted.extend(packs.iter().map(|pack| pack.object.name.clone()));
        });
        let note = Note::new(&self.repo.sealing, packs);
        resume::keep(self.repo, &folder(self.system_id, label), number, &note).await
    }

    /// The backups that an incremental one could build on, the newest first; none for a full one.
    fn possible_parents(&self, mut all: Vec<Manifest>) -> Vec<Manifest> {
        if self.options.kind == Kind::Full {
            return Vec::new();
        }
        all.sort_by_key(|backup| std::cmp::Reverse(backup.start));
        all
    }

    /// The newest of them that this server has come from; why not the newest of all.
    async fn choose_parent(
        &self,
        possible: Vec<Manifest>,
        timeline: u32,
        start: Lsn,
    ) -> Result<(Option<(Manifest, FileList)>, Option<String>), BackupError> {
        if self.options.kind == Kind::Full {
            return Ok((None, None));
        }
        let history = self.history(timeline).await?;
        let mut full_because = None;
        for parent in possible {
            match can_build_on(&parent, timeline, start, self.session.facts.version, &history) {
                Ok(()) => {
                    let files = catalog::files(self.repo, &parent).await?;
                    return Ok((Some((parent, files)), None));
                }
                Err(why) => full_because = full_because.or(Some(why)),
            }
        }
        Ok((None, full_because.or_else(|| Some("there is no backup to build on".to_owned()))))
    }

    async fn make(&self, label: &str, parents: Vec<Manifest>, known: Known) -> Result<Created, BackupError> {
        (self.progress)(Step::Checkpoint);
        if let Some(primary) = self.options.primary.as_ref().filter(|_| self.options.fast_checkpoint) {
            self.session.catch_up_with_checkpoint(primary).await?;
        }
        let (start, timeline, started_at) = self.session.start(label, self.options.fast_checkpoint).await?;
        let (chosen, full_because) = self.choose_parent(parents, timeline, start).await?;
        let data = self.options.data_dir.clone();
        let scan = crate::blocking(move || scan::scan(&data)).await?;
        let (control, mut files): (Vec<_>, Vec<_>) = scan.files.iter().cloned().partition(|f| f.path == CONTROL_FILE);
        files.extend(control);
        let lengths: Vec<u64> = files.iter().map(|file| file.bytes).collect();
        // the control file comes last, in a pack of its own
        let mut packs =
            pack::plan(lengths.get(..lengths.len().saturating_sub(1)).unwrap_or_default(), self.options.threads);
        let last = files.len().saturating_sub(1);
        packs.push(vec![pack::Extent { file: last, at: 0, bytes: lengths.last().copied().unwrap_or(0) }]);
        let total = lengths.iter().sum();
        let job = Arc::new(Job {
            data: self.options.data_dir.clone(),
            files,
            sealing: self.repo.sealing.clone(),
            start,
            check_pages: self.session.facts.checksums,
            parent: chosen.as_ref().map(|(manifest, list)| Parent {
                start: manifest.start,
                files: list.files.iter().map(|file| (file.path.clone(), file.clone())).collect(),
            }),
            known,
            known_from: packs.len(),
            throttle: self.options.bytes_per_second_max.map(Throttle::new),
            stop: self.stop.clone(),
            read: AtomicU64::new(0),
            idle: pack::Idle::default(),
        });
        let mut done = self.copy(&job, label, packs, total).await?;
        self.take_over(&job, label, &mut done).await?;
        let stopped = self.session.stop().await?;
        let timeline = timeline_of(&stopped.backup_label).unwrap_or(timeline);

        let mut entries = join(&job.files, std::mem::take(&mut done.outcomes));
        let names = pack_names(&mut entries, &done.objects);
        let manifest = Manifest {
            format: FORMAT,
            label: label.to_owned(),
            kind: if chosen.is_some() { Kind::Incremental } else { Kind::Full },
            parent: chosen.map(|(parent, _)| parent.label),
            system_id: self.system_id,
            timeline,
            start,
            stop: stopped.lsn,
            started_at,
            stopped_at: stopped.at,
            postgres_version: self.session.facts.version,
            wal_segment_bytes: self.session.facts.wal_segment_bytes,
            from_replica: self.session.facts.in_recovery,
            pages_checked: self.session.facts.checksums,
            pages_damaged: done.damaged,
            tablespaces: scan.tablespaces.clone(),
            files: u64::try_from(entries.len()).unwrap_or(u64::MAX),
            data_bytes: entries.iter().map(|entry| entry.bytes).sum(),
            packed_bytes: done.bytes,
            stored_bytes: 0,
            objects: done.objects,
        };
        let manifest = self.finish(manifest, entries, names, scan, stopped).await?;
        Ok(Created { manifest, full_because, taken_over_bytes: done.taken_over_bytes })
    }

    /// The history of the timeline that the server is on: from its own folder, else from the repository.
    async fn history(&self, timeline: u32) -> Result<History, BackupError> {
        let path = self.options.data_dir.join("pg_wal").join(wal::history_name(timeline));
        match std::fs::read_to_string(&path) {
            Ok(text) => History::parse(&text).map_err(|error| BackupError::Unfit(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(wal::inventory(self.repo, self.system_id).await?.history(timeline))
            }
            Err(error) => Err(BackupError::io("read", path)(error)),
        }
    }

    async fn copy(
        &self,
        job: &Arc<Job>,
        label: &str,
        packs: Vec<Vec<pack::Extent>>,
        bytes_total: u64,
    ) -> Result<Done, BackupError> {
        let threads = self.options.threads.max(1);
        let (first, last) = packs.split_at(packs.len().saturating_sub(1));
        let mut done = Done::default();
        let begun = tokio::time::Instant::now();
        let (mut number, mut noted) = (0, begun);
        for (packs, threads) in [(first, threads), (last, 1)] {
            let numbered: Vec<_> = packs
                .iter()
                .cloned()
                .map(|pack| {
                    number += 1;
                    (number - 1, pack)
                })
                .collect();
            let mut made = futures::stream::iter(numbered)
                .map(|(number, extents)| async move {
                    let (at, job) = (number, job.clone());
                    let mut packed = crate::blocking(move || pack::make(&job, at, &extents)).await?;
                    if let Some((object, bytes)) = packed.object.take() {
                        self.repo.create(&format!("{}/{}", folder(self.system_id, label), object.name), bytes).await?;
                        packed.object = Some((object, Vec::new()));
                    }
                    Ok::<_, BackupError>(packed)
                })
                .buffer_unordered(threads)
                .boxed();
            while let Some(packed) = made.try_next().await? {
                if let Some((object, _)) = packed.object {
                    let pieces = packed.outcomes.iter().filter_map(|outcome| outcome.piece.as_ref());
                    let parts = resume::parts(pack_number(&object.name).unwrap_or(usize::MAX), pieces);
                    if resume::is_worth_noting(&parts) {
                        self.notes(|notes| notes.waiting.push(NotedPack { object: object.clone(), parts }));
                    }
                    done.objects.push(object);
                }
                done.outcomes.extend(packed.outcomes);
                done.damaged.extend(packed.damaged);
                done.bytes += packed.bytes;
                if noted.elapsed() >= NOTE_EVERY {
                    self.note(label).await?;
                    noted = tokio::time::Instant::now();
                }
                (self.progress)(Step::Copy { bytes: job.read.load(Ordering::Relaxed), bytes_total });
            }
        }
        if begun.elapsed() >= NOTE_EVERY {
            self.note(label).await?;
        }
        done.damaged.sort();
        if !done.damaged.is_empty() {
            let pages = done.damaged.len();
            tracing::error!(
                label,
                pages,
                first = done.damaged.first(),
                "pages of the server are damaged: their checksums are wrong"
            );
        }
        done.damaged.truncate(100);
        Ok(done)
    }

    /// Copies the packs of other runs that parts were found in, each within its place.
    async fn take_over(&self, job: &Job, label: &str, done: &mut Done) -> Result<(), BackupError> {
        let pieces = done.outcomes.iter().filter_map(|outcome| outcome.piece.as_ref());
        let known = || pieces.clone().filter(|piece| piece.pack >= job.known_from);
        let numbers: BTreeSet<usize> = known().map(|piece| piece.pack).collect();
        done.taken_over_bytes = known().map(|piece| piece.bytes).sum();
        let place = folder(self.system_id, label);
        let copies = numbers.into_iter().filter_map(|number| Some((number, job.known.pack(number - job.known_from)?)));
        let copied = futures::stream::iter(copies)
            .map(|(number, pack)| {
                let name = format!("pack-{number:05}.{}", self.repo.sealing.extension());
                let to = format!("{place}/{name}");
                async move {
                    self.repo.duplicate(&pack.name, &to, pack.object.bytes).await?;
                    Ok::<_, BackupError>(Object { name, ..pack.object.clone() })
                }
            })
            .buffer_unordered(COPIES)
            .boxed();
        done.objects.extend(copied.try_collect::<Vec<_>>().await?);
        done.objects.sort_by(|a, b| a.name.cmp(&b.name));
        if done.taken_over_bytes > 0 {
            tracing::info!(label, bytes = done.taken_over_bytes, "taken over from backups that did not end");
        }
        Ok(())
    }

    async fn finish(
        &self,
        mut manifest: Manifest,
        files: Vec<FileEntry>,
        packs: Vec<String>,
        scan: Scan,
        stopped: Stopped,
    ) -> Result<Manifest, BackupError> {
        let list = FileList {
            format: FORMAT,
            backup_label: stopped.backup_label,
            tablespace_map: stopped.tablespace_map,
            folders: scan.folders,
            files,
            packs,
        };
        let sealed = self.repo.sealing.seal(&manifest::to_document(&list)?)?;
        let object = Object {
            name: format!("files.json.{}", self.repo.sealing.extension()),
            bytes: u64::try_from(sealed.len()).unwrap_or(u64::MAX),
            blake3: blake3::hash(&sealed).to_hex().to_string(),
        };
        let place = folder(self.system_id, &manifest.label);
        self.repo.create(&format!("{place}/{}", object.name), sealed).await?;
        manifest.objects.push(object);
        manifest.stored_bytes = manifest.objects.iter().map(|object| object.bytes).sum();
        if let Some(deadline) = self.options.wal_wait {
            (self.progress)(Step::WaitForLog { until: manifest.stop });
            let range = (manifest.timeline, manifest.start, manifest.stop);
            if !wait_for_log(self.repo, self.system_id, range, deadline).await? {
                return Err(BackupError::WalNotArchived {
                    label: manifest.label,
                    timeline: manifest.timeline,
                    needed: manifest.stop,
                });
            }
        }
        self.repo.create(&format!("{place}/manifest.json"), manifest::to_document(&manifest)?).await?;
        tracing::info!(label = manifest.label, kind = ?manifest.kind, bytes = manifest.stored_bytes, "backup made");
        Ok(manifest)
    }
}

/// Waits until all of the log between two positions of a timeline is in the repository; `false`: it was not in time.
pub(crate) async fn wait_for_log(
    repo: &Repository,
    system_id: u64,
    (timeline, from, to): (u32, Lsn, Lsn),
    deadline: Duration,
) -> Result<bool, BackupError> {
    let until = tokio::time::Instant::now() + deadline;
    loop {
        let inventory = wal::inventory(repo, system_id).await?;
        if plan::missing(&inventory, timeline, from, to).is_none() {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[derive(Default)]
struct Done {
    outcomes: Vec<Outcome>,
    damaged: Vec<String>,
    bytes: u64,
    taken_over_bytes: u64,
    objects: Vec<Object>,
}

/// Whether what has changed since the parent's start is all that a new backup must hold. Pure; says why not.
fn can_build_on(parent: &Manifest, timeline: u32, start: Lsn, version: u32, history: &History) -> Result<(), String> {
    let label = &parent.label;
    if parent.postgres_version / 10_000 != version / 10_000 {
        return Err(format!("{label} is of PostgreSQL {}", parent.postgres_version / 10_000));
    }
    if parent.timeline != timeline && history.left(parent.timeline).is_none_or(|left| left < parent.stop) {
        return Err(format!("{label} is of timeline {}, which this server has not come from", parent.timeline));
    }
    if start < parent.start {
        return Err(format!("{label} begins later in the log than this server stands"));
    }
    if !parent.pages_damaged.is_empty() {
        return Err(format!("{label} holds damaged pages"));
    }
    Ok(())
}

/// The files as they were found, with all of their pieces. Pure.
fn join(files: &[scan::Found], outcomes: Vec<Outcome>) -> Vec<FileEntry> {
    let mut of_file: HashMap<usize, Vec<Outcome>> = HashMap::new();
    for outcome in outcomes {
        of_file.entry(outcome.file).or_default().push(outcome);
    }
    let entry = |(index, found): (usize, &scan::Found)| {
        let outcomes = of_file.remove(&index).unwrap_or_default();
        // it had gone when its beginning was to be read: what was read of its rest is of no use
        let gone = found.bytes > 0 && !outcomes.iter().any(|o| o.end.is_some() && o.begins);
        if gone {
            return None;
        }
        let mut pieces: Vec<Piece> = outcomes.iter().filter_map(|outcome| outcome.piece.clone()).collect();
        pieces.sort_by_key(|piece| piece.at);
        Some(FileEntry {
            path: found.path.clone(),
            mode: found.mode,
            bytes: outcomes.iter().filter_map(|outcome| outcome.end).max().unwrap_or(0),
            on_parent: outcomes.iter().any(|outcome| outcome.on_parent),
            blake3: outcomes.iter().find_map(|outcome| outcome.blake3.clone()),
            pieces,
        })
    };
    files.iter().enumerate().filter_map(entry).collect()
}

fn pack_number(name: &str) -> Option<usize> {
    name.strip_prefix("pack-")?.split('.').next()?.parse().ok()
}

/// Numbers the packs anew, because empty ones were not written; gives their names.
fn pack_names(entries: &mut [FileEntry], objects: &[Object]) -> Vec<String> {
    let places: HashMap<usize, usize> =
        objects.iter().enumerate().filter_map(|(place, object)| Some((pack_number(&object.name)?, place))).collect();
    for piece in entries.iter_mut().flat_map(|entry| &mut entry.pieces) {
        piece.pack = places.get(&piece.pack).copied().unwrap_or(usize::MAX);
    }
    objects.iter().map(|object| object.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::backup;

    #[test]
    fn an_incremental_needs_an_ancestor() {
        let parent = backup("a", 1, 100, 200);
        let history = History::parse("1\t0/C8\tx\n").unwrap();
        let none = History::default();
        let check = |timeline, start, history: &History| can_build_on(&parent, timeline, Lsn(start), 150_002, history);
        assert_eq!(check(1, 300, &none), Ok(()));
        assert_eq!(check(2, 300, &history), Ok(()), "left just at the parent's stop");
        assert!(check(2, 300, &none).unwrap_err().contains("timeline 1"));
        let early = History::parse("1\t0/C7\tx\n").unwrap();
        assert!(check(2, 300, &early).is_err(), "left before the parent was consistent");
        assert!(check(1, 50, &none).is_err());
        assert!(can_build_on(&parent, 1, Lsn(300), 160_000, &none).is_err());
    }

    #[test]
    fn labels_differ_and_sort() {
        let label = label();
        assert_eq!(label.len(), 21, "{label}");
        assert!(label.starts_with("20") && label.get(15..17) == Some("Z-"));
    }

    #[test]
    fn files_that_vanished_are_no_entries() {
        let found = |path: &str, bytes| scan::Found { path: path.to_owned(), mode: 0o600, bytes, pages: None };
        let outcome = |file, begins, end| Outcome { file, begins, end, blake3: None, on_parent: false, piece: None };
        let files = [found("empty", 0), found("gone", 5), found("half", 70 << 20), found("there", 9)];
        let outcomes = vec![
            outcome(1, true, None),
            outcome(2, true, None),
            outcome(2, false, Some(70 << 20)),
            outcome(3, true, Some(7)),
        ];
        let entries: Vec<_> = join(&files, outcomes).into_iter().map(|e| (e.path, e.bytes)).collect();
        assert_eq!(entries, [("empty".to_owned(), 0), ("there".to_owned(), 7)]);
    }
}
