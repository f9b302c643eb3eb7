//! Transactions that the server sends while they still run: kept on disk until they commit.
//!
//! One nameless file for each; a crash leaves nothing behind. Rolled back subtransactions are
//! remembered and left out when the file is read, so nothing is ever rewritten.
//! File reads and writes here block: they go through the page cache, a quarter megabyte at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use crate::error::CaptureError;

const BUFFER_BYTES: usize = 256 * 1024;

/// All transactions that are being streamed.
#[derive(Debug)]
pub(crate) struct Spills {
    folder: PathBuf,
    open: BTreeMap<u32, Spill>,
}

#[derive(Debug)]
struct Spill {
    file: BufWriter<File>,
    aborted: BTreeSet<u32>,
}

impl Spills {
    pub(crate) fn new(folder: PathBuf) -> Result<Self, CaptureError> {
        let spills = Self { folder, open: BTreeMap::new() };
        millrace_base::files::create_dir_all(&spills.folder, 0o700).map_err(|e| spills.failed(e))?;
        Ok(spills)
    }

    fn failed(&self, source: io::Error) -> CaptureError {
        CaptureError::Spill { folder: self.folder.display().to_string(), source }
    }

    /// Keeps a message of transaction `xid` that (sub)transaction `subxid` made.
    pub(crate) fn keep(&mut self, xid: u32, subxid: u32, message: &[u8]) -> Result<(), CaptureError> {
        let written = (|| {
            let spill = match self.open.entry(xid) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let file = BufWriter::with_capacity(BUFFER_BYTES, tempfile::tempfile_in(&self.folder)?);
                    entry.insert(Spill { file, aborted: BTreeSet::new() })
                }
            };
            let len = u32::try_from(message.len()).map_err(io::Error::other)?;
            spill.file.write_all(&subxid.to_le_bytes())?;
            spill.file.write_all(&len.to_le_bytes())?;
            spill.file.write_all(message)
        })();
        written.map_err(|e| self.failed(e))
    }

    /// `subxid` was rolled back; if it is `xid` itself, all of it.
    pub(crate) fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.open.remove(&xid);
        } else if let Some(spill) = self.open.get_mut(&xid) {
            spill.aborted.insert(subxid);
        }
    }

    /// Takes a transaction out to read it; `None` if it has no change.
    pub(crate) fn take(&mut self, xid: u32) -> Result<Option<Replay>, CaptureError> {
        let Some(spill) = self.open.remove(&xid) else { return Ok(None) };
        let opened = (|| {
            let mut file = spill.file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(BufReader::with_capacity(BUFFER_BYTES, file))
        })();
        let file = opened.map_err(|e| self.failed(e))?;
        let folder = self.folder.display().to_string();
        Ok(Some(Replay { file, aborted: spill.aborted, message: Vec::new(), folder }))
    }
}

/// A committed transaction being read back.
#[derive(Debug)]
pub(crate) struct Replay {
    file: BufReader<File>,
    aborted: BTreeSet<u32>,
    message: Vec<u8>,
    folder: String,
}

impl Replay {
    /// The next message, and whether its subtransaction was rolled back.
    pub(crate) fn next(&mut self) -> Result<Option<(&[u8], bool)>, CaptureError> {
        let read = self.read();
        let folder = &self.folder;
        let found = read.map_err(|source| CaptureError::Spill { folder: folder.clone(), source })?;
        Ok(found.map(|aborted| (self.message.as_slice(), aborted)))
    }

    fn read(&mut self) -> io::Result<Option<bool>> {
        let mut head = [0; 8];
        match self.file.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let [a, b, c, d, e, f, g, h] = head;
        let subxid = u32::from_le_bytes([a, b, c, d]);
        let len = usize::try_from(u32::from_le_bytes([e, f, g, h])).map_err(io::Error::other)?;
        self.message.resize(len, 0);
        self.file.read_exact(&mut self.message)?;
        Ok(Some(self.aborted.contains(&subxid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aborted_parts_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut spills = Spills::new(folder.path().join("spill")).unwrap();
        spills.keep(1, 1, b"one").unwrap();
        spills.keep(2, 2, b"other").unwrap();
        spills.keep(1, 11, b"two").unwrap();
        spills.keep(1, 1, b"").unwrap();
        spills.abort(1, 11);
        spills.abort(2, 2);
        let mut replay = spills.take(1).unwrap().unwrap();
        let mut seen = Vec::new();
        while let Some((message, aborted)) = replay.next().unwrap() {
            seen.push((message.to_vec(), aborted));
        }
        assert_eq!(seen, [(b"one".to_vec(), false), (b"two".to_vec(), true), (Vec::new(), false)]);
        assert!(spills.take(2).unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path().join("spill")).unwrap().count(), 0);
    }
}
