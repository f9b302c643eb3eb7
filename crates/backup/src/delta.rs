//! A restore over a data directory that is there: what is the same already stays.
//!
//! Invariants: the folder is of the same cluster and nothing runs in it; the control file goes before anything else is
//! touched, so that no server starts on what is half old and half new, and a mark says whose it is meanwhile; what the
//! backup does not name is removed, but never through a link that PostgreSQL does not make itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use futures::{StreamExt, TryStreamExt};
use millrace_base::files;
use millrace_pg::control_file;
use tokio_util::sync::CancellationToken;

use crate::{
    error::BackupError,
    manifest::{FileList, Piece},
    scan::CONTROL_FILE,
    unpack::{self, Wanted},
};

/// Within the data directory, while its control file is not there.
const MARK: &str = "millrace_restoring";
/// Of a file at a time.
const BUFFER: usize = 1 << 20;

/// Whether there is something to restore over. `false`: it is absent or empty, and everything is restored. `links` are where
/// tablespaces lead to, by `pg_tblspc/<oid>`.
///
/// # Errors
/// If it is another cluster's or none's, or a server works in it, or in what it leads to.
pub(crate) fn may_take(data: &Path, system_id: u64, links: &BTreeMap<String, PathBuf>) -> Result<bool, BackupError> {
    let refuse = |reason: &str| Err(BackupError::Target { path: data.to_owned(), reason: reason.to_owned() });
    match fs::read_dir(data) {
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(false);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(BackupError::io("list", data)(error)),
    }
    let mark = data.join(MARK);
    let left = crate::scan::there(fs::read_to_string(&mark), "read", &mark)?;
    let of = match left {
        Some(text) => text.trim().parse().ok(),
        None => control_file::read(data).ok().map(|control| control.system_id),
    };
    match of {
        Some(of) if of == system_id => {}
        Some(_) => return refuse("it holds the data of another cluster"),
        None => return refuse("it is not empty, and no data directory"),
    }
    match at_work(data, links)? {
        Some(pid) => refuse(&format!("process {pid} works in it, or in what it leads to: stop the server first")),
        None => Ok(true),
    }
}

/// From here on no server starts on it.
pub(crate) fn take(data: &Path, system_id: u64) -> Result<(), BackupError> {
    let mark = data.join(MARK);
    files::write_atomic(&mark, system_id.to_string().as_bytes(), 0o600).map_err(BackupError::io("write", &mark))?;
    let control = data.join(CONTROL_FILE);
    crate::scan::there(fs::remove_file(&control), "remove", &control)?;
    let folder = data.join("global");
    crate::scan::there(fs::File::open(&folder).and_then(|folder| folder.sync_all()), "sync", &folder)?;
    Ok(())
}

/// The folder is whole again.
pub(crate) fn give_back(data: &Path) -> Result<(), BackupError> {
    let mark = data.join(MARK);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BackupError::io("remove", mark)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A process whose working directory it is, as all of a server's have, or whose log or tablespaces are those that it leads
/// to (a copied folder has the original's links). By number of the file, which a container cannot rename.
fn at_work(data: &Path, links: &BTreeMap<String, PathBuf>) -> Result<Option<u32>, BackupError> {
    let number = |place: &Path| fs::metadata(place).ok().map(|meta| (meta.dev(), meta.ino()));
    let mut ours = vec![(String::new(), number(data))];
    ours.push(("pg_wal".to_owned(), number(&data.join("pg_wal"))));
    ours.extend(links.iter().map(|(link, target)| (link.clone(), number(target))));
    let processes = fs::read_dir("/proc").map_err(BackupError::io("list", "/proc"))?;
    let mut pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.find(|pid| {
        // one that has ended meanwhile has no working directory
        let folder = PathBuf::from(format!("/proc/{pid}/cwd"));
        ours.iter().any(|(path, ours)| ours.is_some() && number(&folder.join(path)) == *ours)
    }))
}

/// Removes what the backup does not have. `links` are where tablespaces lead to, by `pg_tblspc/<oid>`.
pub(crate) fn sweep(data: &Path, list: &FileList, links: &BTreeMap<String, PathBuf>) -> Result<(), BackupError> {
    let files: HashSet<&str> = list.files.iter().map(|file| file.path.as_str()).collect();
    let folders: HashSet<&str> = list.folders.iter().map(|folder| folder.path.as_str()).collect();
    let mut open: Vec<(PathBuf, String)> = vec![(data.to_owned(), String::new())];
    while let Some((folder, path)) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(BackupError::io("list", &folder))? {
            let entry = entry.map_err(BackupError::io("list", &folder))?;
            let place = entry.path();
            let kind = entry.file_type().map_err(BackupError::io("look at", &place))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if path == MARK || kind.is_file() && files.contains(path.as_str()) {
                continue;
            }
            let leads = |to: &PathBuf| fs::read_link(&place).is_ok_and(|at| at == *to);
            let ours = path == "pg_wal" && place.is_dir() || links.get(&path).is_some_and(leads);
            if (kind.is_dir() || kind.is_symlink() && ours) && folders.contains(path.as_str()) {
                open.push((place, path));
                continue;
            }
            let removed = if kind.is_dir() { fs::remove_dir_all(&place) } else { fs::remove_file(&place) };
            removed.map_err(BackupError::io("remove", &place))?;
        }
    }
    Ok(())
}

/// What is to be written after all, and how many bytes stay.
pub(crate) struct Compared {
    pub(crate) wanted: Vec<Vec<Wanted>>,
    pub(crate) kept_bytes: u64,
}

/// Compares the pieces with what is there. A file whose pages are of several backups is written anew: what its older
/// pieces were before is not there to be compared with.
pub(crate) async fn compare(
    data: &Path,
    wanted: Vec<Vec<Wanted>>,
    list: &FileList,
    threads: usize,
    stop: &CancellationToken,
) -> Result<Compared, BackupError> {
    let lengths: HashMap<&str, u64> = list.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    let files = by_file(&wanted);
    let mut looked = futures::stream::iter(files)
        .map(|(path, pieces)| {
            let (length, stop) = (lengths.get(path.as_str()).copied().unwrap_or(0), stop.clone());
            let place = unpack::place(data, &path);
            async move {
                let place = place?;
                let same = crate::blocking(move || look(&place, pieces, length, &stop)).await?;
                Ok::<_, BackupError>((path, same))
            }
        })
        .buffer_unordered(threads.max(1))
        .boxed();
    let mut same: HashMap<String, BTreeSet<u64>> = HashMap::new();
    let mut kept_bytes = 0;
    while let Some((path, found)) = looked.try_next().await? {
        kept_bytes += found.iter().map(|piece| piece.bytes).sum::<u64>();
        same.insert(path, found.iter().map(|piece| piece.at).collect());
    }
    drop(looked);
    let differs = |(path, piece): &(String, Piece)| !same.get(path).is_some_and(|same| same.contains(&piece.at));
    let left = |of_backup: Vec<Wanted>| {
        let left = of_backup.into_iter().map(|mut pack| {
            pack.pieces.retain(differs);
            pack
        });
        left.filter(|pack| !pack.pieces.is_empty()).collect()
    };
    Ok(Compared { wanted: wanted.into_iter().map(left).collect(), kept_bytes })
}

/// The pieces of each file, and `None` where those of several backups lie over each other. Pure.
fn by_file(wanted: &[Vec<Wanted>]) -> BTreeMap<String, Option<Vec<Piece>>> {
    let mut files: BTreeMap<String, (usize, Option<Vec<Piece>>)> = BTreeMap::new();
    for (number, of_backup) in wanted.iter().enumerate() {
        for (path, piece) in of_backup.iter().flat_map(|pack| &pack.pieces) {
            let (of, pieces) = files.entry(path.clone()).or_insert((number, Some(Vec::new())));
            if *of != number || piece.pages.is_some() {
                *pieces = None;
            }
            if let Some(pieces) = pieces {
                pieces.push(piece.clone());
            }
        }
    }
    files.into_iter().map(|(path, (_, pieces))| (path, pieces)).collect()
}

/// Which pieces are there already. A file that is to be written as a whole is removed.
fn look(
    place: &Path,
    pieces: Option<Vec<Piece>>,
    length: u64,
    stop: &CancellationToken,
) -> Result<Vec<Piece>, BackupError> {
    let Some(file) = crate::scan::there(fs::File::open(place), "open", place)? else { return Ok(Vec::new()) };
    let meta = file.metadata().map_err(BackupError::io("look at", place))?;
    let covered = |pieces: &Vec<Piece>| pieces.iter().map(|piece| piece.bytes).sum::<u64>() >= length;
    // what has another name too is not ours alone
    let Some(pieces) = pieces.filter(|pieces| covered(pieces) && meta.nlink() == 1) else {
        fs::remove_file(place).map_err(BackupError::io("remove", place))?;
        return Ok(Vec::new());
    };
    let mut same = Vec::new();
    let mut buffer = vec![0; BUFFER];
    for piece in pieces {
        if stop.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        if piece.at + piece.bytes > meta.len() {
            continue;
        }
        let mut hash = blake3::Hasher::new();
        let (mut at, end) = (piece.at, piece.at + piece.bytes);
        while at < end {
            let now = usize::try_from(end - at).unwrap_or(usize::MAX).min(BUFFER);
            let Some(part) = buffer.get_mut(..now) else { break };
            file.read_exact_at(part, at).map_err(BackupError::io("read", place))?;
            hash.update(part);
            at += u64::try_from(now).unwrap_or(u64::MAX);
        }
        if hash.finalize().to_hex().as_str() == piece.blake3 {
            same.push(piece);
        }
    }
    Ok(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{FileEntry, Folder};

    fn piece(content: &[u8], at: u64) -> Piece {
        let bytes = u64::try_from(content.len()).unwrap();
        Piece {
            pack: 0,
            offset: at,
            bytes,
            blake3: blake3::hash(content).to_hex().to_string(),
            at,
            pages: None,
            steps: false,
        }
    }

    fn pack(pieces: &[(&str, Piece)]) -> Vec<Wanted> {
        vec![Wanted {
            pack: 0,
            pieces: pieces.iter().map(|(path, piece)| ((*path).to_owned(), piece.clone())).collect(),
        }]
    }

    fn entry(path: &str, bytes: u64) -> FileEntry {
        FileEntry { path: path.into(), mode: 0o600, bytes, on_parent: false, blake3: None, pieces: Vec::new() }
    }

    fn left(compared: &Compared) -> Vec<Vec<(String, u64)>> {
        let of = |packs: &Vec<Wanted>| {
            packs.iter().flat_map(|p| &p.pieces).map(|(p, piece)| (p.clone(), piece.at)).collect()
        };
        compared.wanted.iter().map(of).collect()
    }

    #[tokio::test]
    async fn only_what_differs_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        for (name, content) in
            [("same", "aaaa"), ("half", "aabb"), ("short", "aa"), ("both", "aaaa"), ("long", "aaaaxx")]
        {
            fs::write(data.join(name), content).unwrap();
        }
        fs::hard_link(data.join("same"), data.join("twice")).unwrap();
        fs::write(data.join("alone"), "aaaa").unwrap();
        let whole = piece(b"aaaa", 0);
        let two = [piece(b"aa", 0), piece(b"aa", 2)];
        let base = pack(&[
            ("alone", whole.clone()),
            ("twice", whole.clone()),
            ("half", two[0].clone()),
            ("half", two[1].clone()),
            ("short", whole.clone()),
            ("both", whole.clone()),
            ("long", whole.clone()),
            ("absent", whole.clone()),
        ]);
        let pages = Piece { pages: Some(vec![(0, 1)]), ..piece(b"aaaa", 0) };
        let wanted = vec![base, pack(&[("both", pages)])];
        let names = ["alone", "twice", "half", "short", "both", "long", "absent"];
        let list = FileList { files: names.iter().map(|name| entry(name, 4)).collect(), ..FileList::default() };
        let compared = compare(data, wanted, &list, 2, &CancellationToken::new()).await.unwrap();
        assert_eq!(compared.kept_bytes, 4 + 2 + 4);
        let of = |names: &[(&str, u64)]| -> Vec<(String, u64)> {
            names.iter().map(|(n, at)| ((*n).to_owned(), *at)).collect()
        };
        assert_eq!(
            left(&compared),
            [of(&[("twice", 0), ("half", 2), ("short", 0), ("both", 0), ("absent", 0)]), of(&[("both", 0)])]
        );
        assert!(!data.join("twice").exists() && !data.join("both").exists(), "written anew, not into");
        assert_eq!(fs::read_to_string(data.join("same")).unwrap(), "aaaa");
    }

    #[test]
    fn what_the_backup_does_not_name_goes_and_nothing_behind_a_strange_link() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let [elsewhere, space, wal] = ["elsewhere", "space", "wal"].map(|name| folder.path().join(name));
        for place in [&data, &elsewhere, &space, &wal] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("loose"), "x").unwrap();
        }
        for place in ["base", "base/1", "base/2", "pg_tblspc"] {
            fs::create_dir(data.join(place)).unwrap();
        }
        for (link, to) in
            [("pg_wal", &wal), ("base/strange", &elsewhere), ("pg_tblspc/7", &space), ("pg_tblspc/8", &elsewhere)]
        {
            std::os::unix::fs::symlink(to, data.join(link)).unwrap();
        }
        fs::write(data.join("base/1/kept"), "x").unwrap();
        fs::write(data.join("base/2/loose"), "x").unwrap();
        fs::write(data.join(MARK), "1").unwrap();
        let of = |path: &&str| Folder { path: (*path).to_owned(), mode: 0o700 };
        let folders = ["base", "base/1", "base/strange", "pg_wal", "pg_tblspc", "pg_tblspc/7", "pg_tblspc/8"];
        let list = FileList {
            folders: folders.iter().map(of).collect(),
            files: vec![entry("base/1/kept", 1)],
            ..FileList::default()
        };
        let links = ["7", "8"].map(|oid| (format!("pg_tblspc/{oid}"), space.clone()));
        sweep(&data, &list, &links.into()).unwrap();
        assert!(data.join("base/1/kept").exists() && data.join(MARK).exists());
        assert!(!data.join("loose").exists() && !data.join("base/2").exists());
        assert!(elsewhere.join("loose").exists() && !data.join("base/strange").exists());
        assert!(data.join("pg_wal").is_dir() && !wal.join("loose").exists());
        assert!(data.join("pg_tblspc/7").is_dir() && !space.join("loose").exists());
        assert!(fs::symlink_metadata(data.join("pg_tblspc/8")).is_err(), "it led to another place");
    }

    #[test]
    fn only_a_folder_of_the_same_cluster_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let may = |system_id| may_take(&data, system_id, &BTreeMap::new());
        assert!(!may(1).unwrap());
        fs::create_dir(&data).unwrap();
        assert!(!may(1).unwrap());
        fs::write(data.join("letter.txt"), "dear").unwrap();
        assert!(may(1).unwrap_err().to_string().contains("no data directory"));
        fs::write(data.join(MARK), "2").unwrap();
        assert!(may(1).unwrap_err().to_string().contains("of another cluster"));
        assert!(may(2).unwrap());
        take(&data, 2).unwrap();
        assert!(may(2).unwrap());
        give_back(&data).unwrap();
        give_back(&data).unwrap();
        assert!(!data.join(MARK).exists());
    }
}
