//! From a repository to a data directory that a server can be started on.
//!
//! Invariants: nothing that is there is overwritten; every byte is checked before it is written; the control file comes
//! last, so that no server starts on an unfinished restore.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{Stream, StreamExt};
use millrace_pg::RunAs;
use tokio_util::sync::CancellationToken;

use crate::{
    ProgressFn, Step,
    base::{self, BaseUse, Content},
    catalog::{self, folder},
    delta,
    error::BackupError,
    manifest::{FileList, Manifest},
    plan::{self, Plan, Target},
    recovery::{self, WalSource},
    repo::Repository,
    scan::{CONTROL_FILE, RESTORE_WAL},
    unpack::{self, Wanted},
    wal::{self, Inventory},
};

/// What is restored, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Made if it is not there; must be empty, unless `delta`.
    pub data_dir: PathBuf,
    /// What is the same already in a stopped server's directory of the same cluster stays, and all else goes.
    pub delta: bool,
    pub target: Target,
    /// `None`: the newest backup from which the target can be reached.
    pub backup: Option<String>,
    /// `None`: the newest in the repository.
    pub timeline: Option<u32>,
    pub threads: usize,
    /// Whose the files are to be; `None`: whoever runs this.
    pub owner: Option<RunAs>,
    /// Other places for tablespaces, by their oids; those not named go where they were.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    pub wal: WalSource,
    /// Files that share their blocks. Not with `delta`, nor for what has tablespaces outside of the data directory.
    pub base: Option<BaseUse>,
}

/// What [`restore`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub plan: Plan,
    pub files: Files,
}

/// Where the files of a restore have come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// The repository.
    Written,
    /// The repository, and there is a base of them now.
    WrittenWithBase,
    /// The base, whose blocks they share.
    Shared,
}

/// Says what [`restore`] would do, without touching anything.
///
/// # Errors
/// If the repository cannot be read or the target cannot be reached.
pub async fn plan(
    repo: &Repository,
    system_id: u64,
    target: &Target,
    backup: Option<&str>,
    timeline: Option<u32>,
) -> Result<Plan, BackupError> {
    let catalog = catalog::list(repo, system_id).await?;
    let inventory = wal::inventory(repo, system_id).await?;
    Ok(plan::plan(&catalog.backups, &inventory, target, backup, timeline)?)
}

/// Restores a data directory. The server that is started on it replays log up to the target and then takes writes, on a
/// timeline of its own.
///
/// # Errors
/// If the target cannot be reached, the folder is not empty, or anything in the repository is damaged. What has been
/// written by then stays; no server starts on it.
pub async fn restore(
    repo: &Repository,
    system_id: u64,
    options: &RestoreOptions,
    progress: &ProgressFn<'_>,
    stop: &CancellationToken,
) -> Result<Restored, BackupError> {
    let catalog = catalog::list(repo, system_id).await?;
    let inventory = wal::inventory(repo, system_id).await?;
    let backup = options.backup.as_deref();
    let plan = plan::plan(&catalog.backups, &inventory, &options.target, backup, options.timeline)?;
    let label = plan.backups.last().map(String::as_str).unwrap_or_default();
    let chain = catalog::chain(&catalog.backups, label)?;
    let mut lists = Vec::new();
    for backup in &chain {
        lists.push(catalog::files(repo, backup).await?);
    }
    let (Some(last), Some(list)) = (chain.last(), lists.last()) else {
        return Err(BackupError::NoSuchBackup(label.to_owned()));
    };
    let run = Run { repo, options, progress, stop, system_id, backup: last, rooms: Arc::default() };
    let brings_log = matches!(options.wal, WalSource::Prefetch | WalSource::Standby);
    let log = if brings_log { plan.segments.len() } else { 0 };
    let delta = options.delta && delta::may_take(&options.data_dir, system_id, &run.links())?;
    let log_bytes = inventory.segment_bytes.saturating_mul(u64::try_from(log).unwrap_or(u64::MAX));
    let base = run.base(list)?;
    let held = match &base {
        Some(base) => run.open_base(base).await?,
        None => None,
    };
    run.makes_room(list, log_bytes, held.is_some())?;
    run.places_are_free(delta)?;
    if delta {
        delta::take(&options.data_dir, system_id)?;
        delta::sweep(&options.data_dir, list, &run.links())?;
    }
    run.lay_out(list)?;
    let shared = run.share(held, base.as_ref(), list, log_bytes).await?;
    if !shared {
        run.write_files(&chain, &lists, list, delta).await?;
    }
    run.set_files(list)?;
    let files = match &base {
        _ if shared => Files::Shared,
        Some(base) if run.leave_base(base.clone()).await? => Files::WrittenWithBase,
        _ => Files::Written,
    };
    if brings_log {
        run.bring_log(&plan, &inventory).await?;
    }
    run.finish(&plan, list)?;
    run.write_control(list).await?;
    delta::give_back(&options.data_dir)?;
    tracing::info!(label, folder = %options.data_dir.display(), target = %options.target, ?files, "restored");
    Ok(Restored { plan, files })
}

/// Takes back what a restore has told the server, once recovery is over and the server stopped: what was set before is
/// in force again. For a data directory that takes the place of the one that it is a copy of.
///
/// # Errors
/// If `postgresql.auto.conf` cannot be written.
pub fn end_restore(data_dir: &Path, owner: Option<&RunAs>) -> Result<(), BackupError> {
    let conf = data_dir.join(AUTO_CONF);
    let text = fs::read_to_string(&conf).map_err(BackupError::io("read", &conf))?;
    let before = recovery::without(&text);
    millrace_base::files::write_atomic(&conf, before.as_bytes(), 0o600).map_err(BackupError::io("write", &conf))?;
    Ok(owner.map_or(Ok(()), |owner| owner.own(&conf))?)
}

pub(crate) const AUTO_CONF: &str = "postgresql.auto.conf";

struct Run<'a> {
    repo: &'a Repository,
    options: &'a RestoreOptions,
    progress: &'a ProgressFn<'a>,
    stop: &'a CancellationToken,
    system_id: u64,
    backup: &'a Manifest,
    /// For the contents of packs, from one to the next.
    rooms: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Run<'_> {
    fn own(&self, path: &Path) -> Result<(), BackupError> {
        match &self.options.owner {
            Some(owner) => Ok(owner.own(path)?),
            None => Ok(()),
        }
    }

    fn make_folder(&self, path: &Path, mode: u32) -> Result<(), BackupError> {
        match fs::DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BackupError::io("make", path)(error));
            }
            _ => {}
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(BackupError::io("make", path))?;
        self.own(path)
    }

    fn tablespace(&self, oid: u32, path: &str) -> PathBuf {
        self.options.tablespaces.get(&oid).cloned().unwrap_or_else(|| PathBuf::from(path))
    }

    /// Where tablespaces lead to, by their links.
    fn links(&self) -> BTreeMap<String, PathBuf> {
        let link = |t: &crate::manifest::Tablespace| (format!("pg_tblspc/{}", t.oid), self.tablespace(t.oid, &t.path));
        self.backup.tablespaces.iter().map(link).collect()
    }

    /// What a base of this backup holds, if one is wanted and can be.
    fn base(&self, list: &FileList) -> Result<Option<Arc<Content>>, BackupError> {
        let may_be = self.options.base.is_some() && !self.options.delta && self.backup.tablespaces.is_empty();
        may_be.then(|| Content::of(self.backup, list).map(Arc::new)).transpose()
    }

    /// The base that files are taken from.
    async fn open_base(&self, content: &Arc<Content>) -> Result<Option<base::Held>, BackupError> {
        let Some(BaseUse { folder, take: true }) = self.options.base.clone() else { return Ok(None) };
        let (data, content) = (self.options.data_dir.clone(), content.clone());
        crate::blocking(move || Ok(base::open(&folder, &data, &content))).await
    }

    /// Takes the files from a base. `false`: there is none, or it did not work and there is room to write them.
    async fn share(
        &self,
        held: Option<base::Held>,
        content: Option<&Arc<Content>>,
        list: &FileList,
        log_bytes: u64,
    ) -> Result<bool, BackupError> {
        let Some((held, content)) = held.zip(content.cloned()) else { return Ok(false) };
        let (data, stop) = (self.options.data_dir.clone(), self.stop.clone());
        let shared = crate::blocking(move || held.share(&data, &content, &stop)).await?;
        self.has_room(list, log_bytes, shared)?;
        Ok(shared)
    }

    async fn leave_base(&self, content: Arc<Content>) -> Result<bool, BackupError> {
        let Some(BaseUse { folder, .. }) = self.options.base.clone() else { return Ok(false) };
        let (data, stop) = (self.options.data_dir.clone(), self.stop.clone());
        crate::blocking(move || base::leave(&folder, &data, &content, &stop)).await
    }

    /// [`Self::has_room`], if need be with that of a base that is of no use here.
    fn makes_room(&self, list: &FileList, log_bytes: u64, shares: bool) -> Result<(), BackupError> {
        let looked = self.has_room(list, log_bytes, shares);
        match &self.options.base {
            // one that others use stays, and its room is not ours
            Some(base) if looked.is_err() && !shares && base::remove(&base.folder).unwrap_or(false) => {
                tracing::info!(folder = %base.folder.display(), "there is no room: the base for copies is removed");
                self.has_room(list, log_bytes, shares)
            }
            _ => looked,
        }
    }

    /// That the data, unless it shares the blocks of others, and the log will fit, as far as that can be known before.
    /// Tablespaces may lie elsewhere.
    fn has_room(&self, list: &FileList, log_bytes: u64, shares: bool) -> Result<(), BackupError> {
        let of_data = || list.files.iter().filter(|file| !shares && !file.path.starts_with("pg_tblspc/"));
        let data: u64 = of_data().map(|file| file.bytes).sum();
        let Some(place) = self.options.data_dir.ancestors().find(|place| place.exists()) else { return Ok(()) };
        let stat = rustix::fs::statvfs(place).map_err(|errno| BackupError::io("look at", place)(errno.into()))?;
        let there: u64 = match self.options.delta {
            true => {
                list.files.iter().filter_map(|f| fs::metadata(place.join(&f.path)).ok()).map(|file| file.len()).sum()
            }
            false => 0,
        };
        let needed_bytes = data.saturating_add(log_bytes).saturating_sub(there);
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed_bytes > free_bytes {
            return Err(BackupError::NoRoom { path: self.options.data_dir.clone(), needed_bytes, free_bytes });
        }
        Ok(())
    }

    /// All places are looked at before the first is changed.
    fn places_are_free(&self, delta: bool) -> Result<(), BackupError> {
        let data = &self.options.data_dir;
        if !delta {
            check_empty(data)?;
        }
        let leads = |link: &String, target: &PathBuf| fs::read_link(data.join(link)).is_ok_and(|at| at == *target);
        for (_, target) in self.links().iter().filter(|(link, target)| !(delta && leads(link, target))) {
            check_empty(target)?;
        }
        Ok(())
    }

    /// The folders and links.
    fn lay_out(&self, list: &FileList) -> Result<(), BackupError> {
        let data = &self.options.data_dir;
        let links = self.links();
        self.make_folder(data, 0o700)?;
        for folder in &list.folders {
            let place = unpack::place(data, &folder.path)?;
            match links.get(&folder.path) {
                Some(target) => {
                    self.make_folder(target, folder.mode)?;
                    if !place.is_dir() {
                        std::os::unix::fs::symlink(target, &place).map_err(BackupError::io("link", &place))?;
                    }
                }
                None => self.make_folder(&place, folder.mode)?,
            }
        }
        Ok(())
    }

    async fn write_files(
        &self,
        chain: &[&Manifest],
        lists: &[FileList],
        list: &FileList,
        delta: bool,
    ) -> Result<(), BackupError> {
        let mut wanted = unpack::wanted(lists)?;
        if delta {
            let compared =
                delta::compare(&self.options.data_dir, wanted, list, self.options.threads, self.stop).await?;
            wanted = compared.wanted;
            (self.progress)(Step::Kept { bytes: compared.kept_bytes });
        }
        self.write_packs(chain, lists, wanted, list.files.iter().map(|file| file.bytes).sum()).await
    }

    async fn write_packs(
        &self,
        chain: &[&Manifest],
        lists: &[FileList],
        wanted: Vec<Vec<Wanted>>,
        bytes_total: u64,
    ) -> Result<(), BackupError> {
        let done = Arc::new(AtomicU64::new(0));
        let halt = self.stop.child_token();
        for ((backup, list), packs) in chain.iter().zip(lists).zip(wanted) {
            let written = futures::stream::iter(packs)
                .map(|wanted| {
                    let name = list.packs.get(wanted.pack);
                    let object = name.and_then(|name| backup.objects.iter().find(|object| object.name == *name));
                    self.write_pack(backup, object, wanted, (done.clone(), halt.clone()))
                })
                .buffer_unordered(self.options.threads.max(1));
            all(written, &halt, || {
                (self.progress)(Step::Copy { bytes: done.load(Ordering::Relaxed).min(bytes_total), bytes_total });
            })
            .await?;
        }
        Ok(())
    }

    async fn write_pack(
        &self,
        backup: &Manifest,
        object: Option<&crate::manifest::Object>,
        mut wanted: Wanted,
        (done, halt): (Arc<AtomicU64>, CancellationToken),
    ) -> Result<(), BackupError> {
        if halt.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let object = object.ok_or_else(|| BackupError::damaged(&backup.label, "its manifest names a pack too few"))?;
        let name = format!("{}/{}", folder(self.system_id, &backup.label), object.name);
        let sealed = self.repo.get_whole(&name, &object.blake3).await?;
        let (keys, data) = (self.repo.keys.clone(), self.options.data_dir.clone());
        let rooms = self.rooms.clone();
        // written by `finish`
        wanted.pieces.retain(|(path, _)| path != CONTROL_FILE);
        crate::blocking(move || {
            let idle = || rooms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut room = idle().pop().unwrap_or_default();
            let read = unpack::read(&name, &sealed, &keys, &wanted.pieces, &halt, &mut room, |path, piece, bytes| {
                unpack::write(&data, path, piece, bytes)?;
                done.fetch_add(piece.bytes, Ordering::Relaxed);
                Ok(())
            });
            idle().push(room);
            read
        })
        .await
    }

    /// The log that the plan names, and every history: a new timeline must not take the number of one that was. A standby
    /// follows the newest history that it finds, so it gets none beyond its timeline.
    async fn bring_log(&self, plan: &Plan, inventory: &Inventory) -> Result<(), BackupError> {
        let (folder, histories_to) = match self.options.wal {
            WalSource::Standby => ("pg_wal", plan.timeline),
            _ => (RESTORE_WAL, u32::MAX),
        };
        let side = self.options.data_dir.join(folder);
        self.make_folder(&side, 0o700)?;
        for (timeline, stored) in inventory.histories.range(..=histories_to) {
            let place = side.join(wal::history_name(*timeline));
            wal::write_file(place.clone(), wal::read(self.repo, stored).await?).await?;
            self.own(&place)?;
        }
        let total = plan.segments.len();
        let (side, halt) = (&side, &self.stop.child_token());
        let brought = futures::stream::iter(plan.segments.clone())
            .map(|segment| async move {
                if halt.is_cancelled() {
                    return Err(BackupError::Cancelled);
                }
                let place = side.join(segment.file_name(inventory.segment_bytes));
                let content = wal::read_segment_now(self.repo, self.system_id, inventory, segment).await?;
                wal::write_file(place.clone(), content).await?;
                self.own(&place)
            })
            .buffer_unordered(self.options.threads.max(1));
        let mut segments = 0;
        all(brought, halt, || {
            segments += 1;
            (self.progress)(Step::Log { segments, segments_total: total });
        })
        .await
    }

    /// Lengths, modes and owners.
    fn set_files(&self, list: &FileList) -> Result<(), BackupError> {
        let data = &self.options.data_dir;
        for file in &list.files {
            if file.path == CONTROL_FILE {
                continue;
            }
            let place = unpack::place(data, &file.path)?;
            let open = unpack::open(&place)?;
            open.set_len(file.bytes)
                .and_then(|()| open.set_permissions(fs::Permissions::from_mode(file.mode)))
                .map_err(BackupError::io("finish", &place))?;
            self.own(&place)?;
        }
        Ok(())
    }

    /// What recovery needs. Then all of it is on disk.
    fn finish(&self, plan: &Plan, list: &FileList) -> Result<(), BackupError> {
        let data = &self.options.data_dir;
        self.write("backup_label", list.backup_label.as_bytes())?;
        if !list.tablespace_map.is_empty() {
            let place = |oid| self.options.tablespaces.get(&oid).map(|place| place.display().to_string());
            self.write("tablespace_map", recovery::remap(&list.tablespace_map, place).as_bytes())?;
        }
        let conf = data.join(AUTO_CONF);
        let before = crate::scan::there(fs::read_to_string(&conf), "read", &conf)?.unwrap_or_default();
        let settings = recovery::settings(plan, &self.options.wal);
        let (before, signal) = match self.options.wal {
            // an earlier restore's target would end it there
            WalSource::Standby => (recovery::without(&before), "standby.signal"),
            _ => (before.as_str(), "recovery.signal"),
        };
        self.write(AUTO_CONF, format!("{before}{settings}").as_bytes())?;
        self.write(signal, b"")?;
        self.sync()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        let place = self.options.data_dir.join(name);
        fs::write(&place, bytes)
            .and_then(|()| fs::set_permissions(&place, fs::Permissions::from_mode(0o600)))
            .map_err(BackupError::io("write", &place))?;
        self.own(&place)
    }

    /// Whole file systems at once: far cheaper than every file by itself.
    fn sync(&self) -> Result<(), BackupError> {
        let tablespaces = self.backup.tablespaces.iter().map(|t| self.tablespace(t.oid, &t.path));
        for place in std::iter::once(self.options.data_dir.clone()).chain(tablespaces) {
            let folder = fs::File::open(&place).map_err(BackupError::io("sync", &place))?;
            rustix::fs::syncfs(&folder).map_err(|errno| BackupError::io("sync", &place)(errno.into()))?;
        }
        Ok(())
    }

    /// The control file, from the last backup of the chain.
    async fn write_control(&self, list: &FileList) -> Result<(), BackupError> {
        let damaged = |reason| BackupError::damaged(&self.backup.label, reason);
        let entry = list.files.iter().find(|file| file.path == CONTROL_FILE);
        let entry = entry.ok_or_else(|| damaged("it has no control file"))?;
        let [piece] = entry.pieces.as_slice() else { return Err(damaged("its control file is in pieces")) };
        let name = list.packs.get(piece.pack);
        let object = name.and_then(|name| self.backup.objects.iter().find(|object| object.name == *name));
        let object = object.ok_or_else(|| damaged("its control file is in no pack"))?;
        let name = format!("{}/{}", folder(self.system_id, &self.backup.label), object.name);
        let sealed = self.repo.get_whole(&name, &object.blake3).await?;
        let place = unpack::place(&self.options.data_dir, CONTROL_FILE)?;
        let pieces = [(entry.path.clone(), piece.clone())];
        let mut room = Vec::new();
        unpack::read(&name, &sealed, &self.repo.keys, &pieces, self.stop, &mut room, |_, _, bytes| {
            millrace_base::files::write_atomic(&place, bytes, entry.mode).map_err(BackupError::io("write", &place))
        })?;
        self.own(&place)
    }
}

/// Waits until every piece of work has ended, also after one that failed: what goes on would write into a folder that
/// its owner is about to remove. The first failure is told.
async fn all(
    work: impl Stream<Item = Result<(), BackupError>>,
    halt: &CancellationToken,
    mut done: impl FnMut(),
) -> Result<(), BackupError> {
    let mut work = std::pin::pin!(work);
    let mut failed = None;
    while let Some(ended) = work.next().await {
        match ended {
            Ok(()) => done(),
            Err(error) => {
                halt.cancel();
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Only what is absent or empty may be restored into.
fn check_empty(place: &Path) -> Result<(), BackupError> {
    let refuse = |reason: &str| Err(BackupError::Target { path: place.to_owned(), reason: reason.to_owned() });
    let entries = match fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return refuse("it is no folder"),
        Err(error) => return Err(BackupError::io("list", place)(error)),
    };
    if entries.count() == 0 {
        return Ok(());
    }
    if place.join("postmaster.pid").exists() {
        return refuse("a server runs there, or did");
    }
    if place.join("PG_VERSION").exists() {
        return refuse("there is a data directory already");
    }
    refuse("it is not empty")
}
