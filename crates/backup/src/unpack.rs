//! From packs to files: which pieces a restore needs, and writing them.
//!
//! A file of an incremental backup that rests on its parent is the parent's with pages written over, then cut to its
//! length. So backups are written in their order, the full one first, and only what the last one still has.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use crate::{
    error::BackupError,
    manifest::{FileEntry, FileList, Piece},
    page::PAGE,
    seal::{self, Keys},
    steps,
};

/// One pack and what is wanted of it: files and pieces in the order of the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) pack: usize,
    pub(crate) pieces: Vec<(String, Piece)>,
}

/// For each backup of a chain, the packs that are needed. Pure.
pub(crate) fn wanted(chain: &[FileList]) -> Result<Vec<Vec<Wanted>>, BackupError> {
    let indexed: Vec<HashMap<&str, &FileEntry>> =
        chain.iter().map(|list| list.files.iter().map(|file| (file.path.as_str(), file)).collect()).collect();
    let mut all: Vec<BTreeMap<usize, Vec<(String, Piece)>>> = vec![BTreeMap::new(); chain.len()];
    let Some(last) = chain.last() else { return Ok(Vec::new()) };
    for file in &last.files {
        for (index, of_backup) in indexed.iter().enumerate().rev() {
            let entry = of_backup
                .get(file.path.as_str())
                .ok_or_else(|| BackupError::damaged(&file.path, "it rests on a parent that does not have it"))?;
            for piece in &entry.pieces {
                if let Some(packs) = all.get_mut(index) {
                    packs.entry(piece.pack).or_default().push((file.path.clone(), piece.clone()));
                }
            }
            if !entry.on_parent {
                break;
            }
            if index == 0 {
                return Err(BackupError::damaged(&file.path, "a full backup says that it rests on a parent"));
            }
        }
    }
    let sorted = |packs: BTreeMap<usize, Vec<(String, Piece)>>| {
        packs
            .into_iter()
            .map(|(pack, mut pieces)| {
                pieces.sort_by_key(|(_, piece)| piece.offset);
                Wanted { pack, pieces }
            })
            .collect()
    };
    Ok(all.into_iter().map(sorted).collect())
}

/// A path of a list within `data`; one that leads out of it is refused.
pub(crate) fn place(data: &Path, path: &str) -> Result<PathBuf, BackupError> {
    let inside = !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    inside
        .then(|| data.join(path))
        .ok_or_else(|| BackupError::damaged(path, "the name leads out of the data directory"))
}

/// Checks a pack, and hands each wanted piece out. `room` is for its content, better one that was used before: memory that
/// is new each time would be given by the system page by page. Blocking.
pub(crate) fn read(
    object: &str,
    sealed: &[u8],
    keys: &Keys,
    pieces: &[(String, Piece)],
    stop: &CancellationToken,
    room: &mut Vec<u8>,
    mut each: impl FnMut(&str, &Piece, &[u8]) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let length = seal::open_into(object, sealed, keys, room)?;
    let content = room.get_mut(..length).unwrap_or_default();
    for (path, piece) in pieces {
        if stop.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let place =
            usize::try_from(piece.offset).ok().zip(usize::try_from(piece.offset.saturating_add(piece.bytes)).ok());
        let bytes = place.and_then(|(from, to)| content.get_mut(from..to));
        let bytes = bytes.ok_or_else(|| BackupError::damaged(object, format!("its part of {path} is not in it")))?;
        if piece.steps {
            steps::undo(bytes);
        }
        if blake3::hash(bytes).to_hex().as_str() != piece.blake3 {
            return Err(BackupError::damaged(object, format!("the checksum of its part of {path} is wrong")));
        }
        each(path, piece, bytes)?;
    }
    Ok(())
}

/// Writes a piece where it belongs.
pub(crate) fn write(data: &Path, path: &str, piece: &Piece, bytes: &[u8]) -> Result<(), BackupError> {
    let place = place(data, path)?;
    let file = open(&place)?;
    let Some(pages) = &piece.pages else {
        return file.write_all_at(bytes, piece.at).map_err(BackupError::io("write", place));
    };
    let mut rest = bytes;
    for (first, number) in pages {
        let length = usize::try_from(*number).unwrap_or(usize::MAX).saturating_mul(PAGE);
        let (now, later) = rest
            .split_at_checked(length)
            .ok_or_else(|| BackupError::damaged(path, "its list of pages is longer than they are"))?;
        let at = first * u64::try_from(PAGE).unwrap_or(1);
        file.write_all_at(now, at).map_err(BackupError::io("write", &place))?;
        rest = later;
    }
    Ok(())
}

pub(crate) fn open(place: &Path) -> Result<File, BackupError> {
    OpenOptions::new().write(true).create(true).truncate(false).open(place).map_err(BackupError::io("open", place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(pack: usize, offset: u64) -> Piece {
        Piece { pack, offset, bytes: 1, blake3: String::new(), at: 0, pages: None, steps: false }
    }

    fn entry(path: &str, on_parent: bool, pieces: &[Piece]) -> FileEntry {
        FileEntry { path: path.into(), mode: 0o600, bytes: 1, on_parent, blake3: None, pieces: pieces.to_vec() }
    }

    fn list(files: &[FileEntry]) -> FileList {
        FileList { files: files.to_vec(), ..FileList::default() }
    }

    #[test]
    fn only_what_the_last_one_still_has() {
        let full = list(&[
            entry("kept", false, &[piece(0, 5)]),
            entry("gone", false, &[piece(0, 0)]),
            entry("new", false, &[piece(1, 0)]),
        ]);
        let middle = list(&[entry("kept", true, &[]), entry("new", true, &[])]);
        let last = list(&[entry("kept", true, &[piece(0, 0)]), entry("new", false, &[piece(0, 1)])]);
        let wanted = wanted(&[full, middle, last]).unwrap();
        let seen: Vec<Vec<(usize, Vec<&str>)>> = wanted
            .iter()
            .map(|packs| packs.iter().map(|w| (w.pack, w.pieces.iter().map(|p| p.0.as_str()).collect())).collect())
            .collect();
        assert_eq!(seen, [vec![(0, vec!["kept"])], vec![], vec![(0, vec!["kept", "new"])]]);
    }

    #[test]
    fn what_rests_on_nothing_is_refused() {
        assert!(wanted(&[list(&[entry("a", true, &[])])]).is_err());
        assert!(wanted(&[list(&[]), list(&[entry("a", true, &[])])]).is_err());
    }

    #[test]
    fn names_stay_inside() {
        let data = Path::new("/data");
        assert_eq!(place(data, "base/1/2").unwrap(), Path::new("/data/base/1/2"));
        for bad in ["", "/etc/passwd", "../x", "base/../../x"] {
            assert!(place(data, bad).is_err(), "{bad}");
        }
    }
}
