//! The files of one backup, kept as they were restored: further restores of it share their blocks, where the file system can
//! (`FICLONE`: xfs with reflink, btrfs), instead of reading the repository.
//!
//! ```text
//! base/base.json   the mark: whose files these are
//! base/data/       them, without the control file
//! base.new/        one that is being made
//! base.lock        held with others by who takes from it, alone by who makes or removes it
//! ```
//!
//! Invariants: a base counts once it has its name, which it gets when its mark is there, which is written last. Its files are
//! never written to again, and no server can start on them. One that is not as the mark and the backup's list of files say
//! counts for nothing, and goes. Nobody waits for its lock: a restore without a base reads the repository. What goes wrong
//! here is no reason for a restore to fail.
//!
//! Not here: what the files hold is not compared again.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use millrace_base::files;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    error::BackupError,
    manifest::{self, FORMAT, FileList, Manifest},
    scan::{CONTROL_FILE, there},
    unpack,
};

const MARK: &str = "base.json";
const DATA: &str = "data";
/// Two blocks of any file system: less may be kept within an inode, and not be shared.
const TRIAL_BYTES: usize = 128 << 10;

/// What a restore does with a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUse {
    /// Its place; the folder that it is in must be there.
    pub folder: PathBuf,
    /// Files are taken from it if it is of the same backup. `false`: they are read from the repository, and it is only left.
    pub take: bool,
}

/// A base that is there: its mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    pub format: u32,
    pub system_id: u64,
    /// Of the backup.
    pub label: String,
    /// Of the stored list of its files.
    pub list_blake3: String,
    pub files: u64,
    /// Of all files; blocks that copies share are counted here too.
    pub bytes: u64,
}

/// The base in `folder`. One without a whole mark is none.
///
/// # Errors
/// If the mark cannot be read.
pub fn look(folder: &Path) -> Result<Option<Base>, BackupError> {
    let mark = folder.join(MARK);
    let text = there(fs::read(&mark), "read", &mark)?;
    Ok(text.and_then(|text| manifest::from_document(MARK, &text).ok()))
}

/// Removes a base, or what is left of one; says whether there was anything.
///
/// # Errors
/// [`BackupError::BaseInUse`] if a restore works with it just now; others if it cannot be removed.
pub fn remove(folder: &Path) -> Result<bool, BackupError> {
    if !folder.exists() && !beside(folder).exists() {
        return Ok(false);
    }
    let Some(_lock) = alone(folder)? else { return Err(BackupError::BaseInUse(folder.to_owned())) };
    clear(&beside(folder))?;
    clear(folder)?;
    Ok(true)
}

/// What a base of a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    mark: Base,
    folders: Vec<String>,
    /// Their lengths.
    files: BTreeMap<String, u64>,
}

impl Content {
    pub(crate) fn of(backup: &Manifest, list: &FileList) -> Result<Self, BackupError> {
        // the control file comes last, out of the repository: without it no server starts
        let kept = list.files.iter().filter(|file| file.path != CONTROL_FILE);
        let files: BTreeMap<String, u64> = kept.map(|file| (file.path.clone(), file.bytes)).collect();
        let mark = Base {
            format: FORMAT,
            system_id: backup.system_id,
            label: backup.label.clone(),
            list_blake3: backup.file_list()?.blake3.clone(),
            files: u64::try_from(files.len()).unwrap_or(u64::MAX),
            bytes: files.values().sum(),
        };
        Ok(Self { mark, folders: list.folders.iter().map(|folder| folder.path.clone()).collect(), files })
    }
}

/// A base that files may be taken from; nobody removes it as long as this is there.
#[derive(Debug)]
pub(crate) struct Held {
    folder: PathBuf,
    _lock: File,
}

/// The base of this content, if it is there, whole, and on a file system that can share with `to`. What is there and of no
/// use goes: what a killed restore has left, what is damaged, what can no longer be shared. Blocking.
pub(crate) fn open(folder: &Path, to: &Path, content: &Content) -> Option<Held> {
    opened(folder, to, content).unwrap_or_else(|error| {
        tracing::warn!(folder = %folder.display(), %error, "a base for copies is not used");
        None
    })
}

fn opened(folder: &Path, to: &Path, content: &Content) -> Result<Option<Held>, BackupError> {
    if !folder.exists() && !beside(folder).exists() {
        return Ok(None);
    }
    let (Some(within), Some(to)) = (folder.parent(), to.ancestors().find(|place| place.exists())) else {
        return Ok(None);
    };
    let shares = can_share(within, to);
    if let Some(held) = hold(folder, content)?
        && shares
        && !beside(folder).exists()
    {
        return Ok(Some(held));
    }
    if let Some(_lock) = alone(folder)? {
        clear(&beside(folder))?;
        let verdict = judge(folder, content)?;
        let is_of_use = shares && !matches!(verdict, Verdict::Damaged(_));
        if !is_of_use && folder.exists() {
            tracing::info!(folder = %folder.display(), ?verdict, shares, "a base for copies is of no use: it is removed");
            clear(folder)?;
        }
    }
    Ok(hold(folder, content)?.filter(|_| shares))
}

/// If it is whole, and nobody makes or removes it.
fn hold(folder: &Path, content: &Content) -> Result<Option<Held>, BackupError> {
    let lock = lock_file(folder)?;
    match lock.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(BackupError::io("lock", folder)(error)),
    }
    let is_whole = judge(folder, content)? == Verdict::Whole;
    Ok(is_whole.then(|| Held { folder: folder.to_owned(), _lock: lock }))
}

impl Held {
    /// Gives `data`, where the folders are, all files. `false`: that failed, and none is there. Blocking.
    pub(crate) fn share(&self, data: &Path, content: &Content, stop: &CancellationToken) -> Result<bool, BackupError> {
        match share(&self.folder.join(DATA), data, content, 0o600, stop) {
            Ok(()) => Ok(true),
            Err(BackupError::Cancelled) => Err(BackupError::Cancelled),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "a base for copies is not used");
                for path in content.files.keys() {
                    let place = unpack::place(data, path)?;
                    there(fs::remove_file(&place), "remove", &place)?;
                }
                Ok(false)
            }
        }
    }
}

/// Leaves a base of what has just been restored into `data`, in place of the one that is there; whether there is one then.
/// `false`, and nothing has changed: the file system cannot share, or another restore works with the one that is there.
/// Blocking.
pub(crate) fn leave(
    folder: &Path,
    data: &Path,
    content: &Content,
    stop: &CancellationToken,
) -> Result<bool, BackupError> {
    match left(folder, data, content, stop) {
        Err(BackupError::Cancelled) => Err(BackupError::Cancelled),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "no base for copies is left");
            Ok(false)
        }
        Ok(left) => Ok(left),
    }
}

fn left(folder: &Path, data: &Path, content: &Content, stop: &CancellationToken) -> Result<bool, BackupError> {
    let Some(within) = folder.parent().filter(|within| can_share(data, within)) else { return Ok(false) };
    let Some(_lock) = alone(folder)? else { return Ok(false) };
    let new = beside(folder);
    clear(&new)?;
    // another restore may have left it meanwhile
    if judge(folder, content)? == Verdict::Whole {
        return Ok(true);
    }
    let made = make(&new, data, content, stop).and_then(|()| {
        clear(folder)?;
        fs::rename(&new, folder).and_then(|()| files::sync_dir(within)).map_err(BackupError::io("rename to", folder))
    });
    if made.is_err() {
        clear(&new)?;
    }
    made.map(|()| true)
}

/// All of it is on disk before the mark is written.
fn make(new: &Path, data: &Path, content: &Content, stop: &CancellationToken) -> Result<(), BackupError> {
    let place = new.join(DATA);
    let folder = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    folder(&place).map_err(BackupError::io("make", &place))?;
    for path in &content.folders {
        let place = unpack::place(&place, path)?;
        folder(&place).map_err(BackupError::io("make", &place))?;
    }
    share(data, &place, content, 0o400, stop)?;
    let synced = File::open(new).and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
    synced.map_err(BackupError::io("sync", new))?;
    let mark = new.join(MARK);
    files::write_atomic(&mark, &manifest::to_document(&content.mark)?, 0o600)
        .map_err(BackupError::io("write", &mark))?;
    match judge(new, content)? {
        Verdict::Whole => Ok(()),
        verdict @ (Verdict::Absent | Verdict::Other | Verdict::Damaged(_)) => {
            Err(BackupError::io("make", new)(io::Error::other(format!("{verdict:?}"))))
        }
    }
}

/// Gives `to` each file, with the blocks of the one in `from`.
fn share(from: &Path, to: &Path, content: &Content, mode: u32, stop: &CancellationToken) -> Result<(), BackupError> {
    for path in content.files.keys() {
        if stop.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let (from, to) = (unpack::place(from, path)?, unpack::place(to, path)?);
        let source = File::open(&from).map_err(BackupError::io("open", &from))?;
        let target = OpenOptions::new().write(true).create_new(true).mode(mode).open(&to);
        let target = target.map_err(BackupError::io("make", &to))?;
        let shared = rustix::fs::ioctl_ficlone(&target, &source);
        shared.map_err(|errno| BackupError::io("share the blocks of", &from)(errno.into()))?;
    }
    Ok(())
}

/// Whether a file in `to` can have the blocks of one in `from`: tried with files that have no name, so that nothing is left.
fn can_share(from: &Path, to: &Path) -> bool {
    let tried = || -> Result<(), Errno> {
        let nameless =
            |folder: &Path| rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR);
        let (source, target) = (nameless(from)?, nameless(to)?);
        rustix::io::write(&source, &vec![1; TRIAL_BYTES])?;
        rustix::fs::ioctl_ficlone(&target, &source)
    };
    tried().is_ok()
}

/// What is at the place of a base.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Absent,
    Whole,
    /// Of another backup, and perhaps whole.
    Other,
    Damaged(String),
}

/// A file of a base, as it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    is_file: bool,
    bytes: u64,
    /// When its content, name or rights were last changed, in seconds and nanoseconds; nobody can set that.
    changed: (i64, i64),
}

impl Found {
    fn new(meta: &fs::Metadata) -> Self {
        Self { is_file: meta.is_file(), bytes: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) }
    }
}

fn judge(folder: &Path, content: &Content) -> Result<Verdict, BackupError> {
    let mark = folder.join(MARK);
    let Some(meta) = there(fs::symlink_metadata(&mark), "look at", &mark)? else {
        let verdict = if folder.exists() { Verdict::Damaged("it has no mark".to_owned()) } else { Verdict::Absent };
        return Ok(verdict);
    };
    let read = fs::read(&mark).map_err(BackupError::io("read", &mark));
    let found: Base = match read.and_then(|text| manifest::from_document(MARK, &text)) {
        Ok(found) => found,
        Err(error) => return Ok(Verdict::Damaged(error.to_string())),
    };
    if found != content.mark {
        return Ok(Verdict::Other);
    }
    let data = folder.join(DATA);
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(&data).min_depth(1) {
        let (meta, entry) = match entry.and_then(|entry| Ok((entry.metadata()?, entry))) {
            Ok(looked) => looked,
            Err(error) => return Ok(Verdict::Damaged(error.to_string())),
        };
        let path = entry.path().strip_prefix(&data).unwrap_or(entry.path()).to_string_lossy().into_owned();
        if !meta.is_dir() {
            found.insert(path, Found::new(&meta));
        }
    }
    Ok(differs(content, &found, Found::new(&meta).changed).map_or(Verdict::Whole, Verdict::Damaged))
}

/// How the files are not as they were when the mark was written. Pure.
fn differs(content: &Content, found: &BTreeMap<String, Found>, marked: (i64, i64)) -> Option<String> {
    let of = |(path, bytes): (&String, &u64)| match found.get(path) {
        None => Some(format!("{path} is not there")),
        Some(file) if !file.is_file => Some(format!("{path} is no file")),
        Some(file) if file.bytes != *bytes => Some(format!("{path} has {} bytes of {bytes}", file.bytes)),
        Some(file) if file.changed > marked => Some(format!("{path} was changed")),
        Some(_) => None,
    };
    let strange = || found.keys().find(|path| !content.files.contains_key(*path));
    content.files.iter().find_map(of).or_else(|| strange().map(|path| format!("{path} is not of the backup")))
}

/// Where it is made.
fn beside(folder: &Path) -> PathBuf {
    folder.with_extension("new")
}

fn lock_file(folder: &Path) -> Result<File, BackupError> {
    let path = folder.with_extension("lock");
    File::create(&path).map_err(BackupError::io("make", path))
}

/// The lock, unless somebody has it.
fn alone(folder: &Path) -> Result<Option<File>, BackupError> {
    let lock = lock_file(folder)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(BackupError::io("lock", folder)(error)),
    }
}

/// The mark goes first: what is half removed is no base.
fn clear(folder: &Path) -> Result<(), BackupError> {
    let mark = folder.join(MARK);
    there(fs::remove_file(&mark), "remove", &mark)?;
    there(fs::remove_dir_all(folder), "remove", folder)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{FileEntry, Folder, Object};

    fn list() -> FileList {
        let file = |path: &str, bytes| FileEntry {
            path: path.to_owned(),
            mode: 0o600,
            bytes,
            on_parent: false,
            blake3: None,
            pieces: Vec::new(),
        };
        FileList {
            folders: vec![Folder { path: "base".to_owned(), mode: 0o700 }],
            files: vec![file("PG_VERSION", 3), file("base/1", 8192), file(CONTROL_FILE, 8192)],
            ..FileList::default()
        }
    }

    fn content() -> Content {
        let mut backup = crate::plan::tests::backup("a", 1, 1, 2);
        backup.objects = vec![Object { name: "files.json.zst".to_owned(), bytes: 1, blake3: "00".to_owned() }];
        Content::of(&backup, &list()).unwrap()
    }

    #[test]
    fn all_files_but_the_control_file_belong_to_it() {
        let content = content();
        assert_eq!((content.mark.files, content.mark.bytes), (2, 8195));
        assert!(!content.files.contains_key(CONTROL_FILE));
    }

    #[test]
    fn what_is_not_as_it_was_is_named() {
        let content = content();
        let marked = (100, 5);
        let file = |bytes, changed| Found { is_file: true, bytes, changed };
        let whole =
            BTreeMap::from([("PG_VERSION".to_owned(), file(3, (99, 999))), ("base/1".to_owned(), file(8192, marked))]);
        assert_eq!(differs(&content, &whole, marked), None);
        let with = |path: &str, found: Option<Found>| {
            let mut other = whole.clone();
            other.remove(path);
            other.extend(found.map(|found| (path.to_owned(), found)));
            differs(&content, &other, marked).unwrap()
        };
        assert_eq!(with("base/1", None), "base/1 is not there");
        assert_eq!(with("base/1", Some(file(8191, marked))), "base/1 has 8191 bytes of 8192");
        assert_eq!(with("base/1", Some(file(8192, (100, 6)))), "base/1 was changed");
        assert_eq!(with("base/1", Some(Found { is_file: false, ..file(8192, marked) })), "base/1 is no file");
        assert_eq!(with("base/2", Some(file(0, marked))), "base/2 is not of the backup");
    }

    #[test]
    fn only_what_has_a_whole_mark_is_there_and_what_is_half_removed_goes() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        let content = content();
        assert!(!remove(&base).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a look leaves nothing");
        assert_eq!(judge(&base, &content).unwrap(), Verdict::Absent);
        fs::create_dir_all(base.join("data/base")).unwrap();
        assert!(matches!(judge(&base, &content).unwrap(), Verdict::Damaged(_)));
        fs::write(base.join("data/PG_VERSION"), "15\n").unwrap();
        fs::write(base.join("data/base/1"), [0; 8192]).unwrap();
        let text = manifest::to_document(&content.mark).unwrap();
        fs::write(base.join(MARK), &text[..text.len() - 4]).unwrap();
        assert_eq!(look(&base).unwrap(), None);
        assert!(matches!(judge(&base, &content).unwrap(), Verdict::Damaged(_)));
        fs::write(base.join(MARK), &text).unwrap();
        assert_eq!(
            (look(&base).unwrap().unwrap(), judge(&base, &content).unwrap()),
            (content.mark.clone(), Verdict::Whole)
        );
        let mut other = content.clone();
        other.mark.label = "b".to_owned();
        assert_eq!(judge(&base, &other).unwrap(), Verdict::Other);
        fs::remove_file(base.join("data/base/1")).unwrap();
        assert!(matches!(judge(&base, &content).unwrap(), Verdict::Damaged(_)));

        fs::create_dir(beside(&base)).unwrap();
        let taken = lock_file(&base).unwrap();
        taken.try_lock_shared().unwrap();
        assert!(matches!(remove(&base), Err(BackupError::BaseInUse(_))));
        drop(taken);
        assert!(remove(&base).unwrap());
        assert!(!base.exists() && !beside(&base).exists());
    }
}
