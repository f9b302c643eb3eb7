//! Packs: what the files of a data directory are bundled into, and how one is made.
//!
//! Large files are split into chunks, small ones put together, so that every pack is about as much work as another
//! and workers never wait for one large file. A pack's content is the chunks one after the other, sealed as one.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_base::Lsn;
use tokio_util::sync::CancellationToken;
use zstd::bulk::Compressor;

use crate::{
    error::BackupError,
    manifest::{FileEntry, Object, Piece},
    page::{self, BLOCKS_PER_FILE, PAGE, Verdict},
    resume::Known,
    scan::{CONTROL_FILE, Found, there},
    seal::Sealing,
    steps,
};

/// Chunks of a file; whole pages.
pub(crate) const CHUNK: u64 = 32 << 20;
/// A file that is written whole and has grown since it was found is read up to here.
const WHOLE_MAX: u64 = 2 * CHUNK;
const PACK_MAX: u64 = CHUNK;
const PACK_MIN: u64 = 8 << 20;
/// Read at once.
const STEP: usize = 1 << 20;
/// A page that looks torn is read again so often before it counts as damaged.
const READS_MAX: u32 = 6;
const REREAD_AFTER: Duration = Duration::from_millis(20);

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) file: usize,
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// Bundles files, by their lengths, into packs for `threads` workers. Pure; empty files are in none.
pub(crate) fn plan(lengths: &[u64], threads: usize) -> Vec<Vec<Extent>> {
    let total: u64 = lengths.iter().sum();
    let share = total / u64::try_from(threads.max(1) * 4).unwrap_or(4);
    let size = share.clamp(PACK_MIN, PACK_MAX);
    let (mut packs, mut open, mut filled) = (Vec::new(), Vec::new(), 0);
    for (file, length) in lengths.iter().enumerate() {
        let mut at = 0;
        while at < *length {
            let bytes = (length - at).min(CHUNK);
            if filled > 0 && filled + bytes > size {
                packs.push(std::mem::take(&mut open));
                filled = 0;
            }
            open.push(Extent { file, at, bytes });
            filled += bytes;
            at += bytes;
        }
    }
    if !open.is_empty() {
        packs.push(open);
    }
    packs
}

/// What all workers of a backup share.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) data: std::path::PathBuf,
    pub(crate) files: Vec<Found>,
    pub(crate) sealing: Sealing,
    /// Where this backup's replay begins.
    pub(crate) start: Lsn,
    /// The server has page checksums.
    pub(crate) check_pages: bool,
    pub(crate) parent: Option<Parent>,
    /// Parts that are in the repository already, and what number the first of their packs gets.
    pub(crate) known: Known,
    pub(crate) known_from: usize,
    pub(crate) throttle: Option<Throttle>,
    pub(crate) stop: CancellationToken,
    pub(crate) read: AtomicU64,
    pub(crate) idle: Idle,
}

/// What a worker needs for a pack and leaves to the next: memory that is new each time would be given by the system page
/// by page, which is a tenth of the work.
#[derive(Default)]
pub(crate) struct Idle(Mutex<Vec<Tools>>);

struct Tools {
    /// As long as the largest pack so far.
    content: Vec<u8>,
    compressor: Compressor<'static>,
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idle").finish_non_exhaustive()
    }
}

impl Idle {
    fn with<T>(
        &self,
        sealing: &Sealing,
        work: impl FnOnce(&mut Tools) -> Result<T, BackupError>,
    ) -> Result<T, BackupError> {
        let idle = || self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = idle().pop();
        let mut tools = match found {
            Some(tools) => tools,
            None => Tools { content: Vec::new(), compressor: sealing.compressor()? },
        };
        let done = work(&mut tools);
        idle().push(tools);
        done
    }
}

/// What an incremental backup builds on.
#[derive(Debug)]
pub(crate) struct Parent {
    /// Where the parent's replay begins: what has changed since may not be in it.
    pub(crate) start: Lsn,
    pub(crate) files: HashMap<String, FileEntry>,
}

/// Bytes a second, all workers together.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    begun: Instant,
    taken: AtomicU64,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), begun: Instant::now(), taken: AtomicU64::new(0) }
    }

    fn take(&self, bytes: u64) {
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_micros(taken.saturating_mul(1_000_000) / self.bytes_per_second);
        std::thread::sleep(due.saturating_sub(self.begun.elapsed())); // tidy: allow, a pause is the purpose
    }
}

/// What became of an extent's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) file: usize,
    /// It is about the file's first bytes.
    pub(crate) begins: bool,
    /// How far it was there: `None` if it had gone.
    pub(crate) end: Option<u64>,
    /// Of a file that is one chunk.
    pub(crate) blake3: Option<String>,
    /// Rests on the parent.
    pub(crate) on_parent: bool,
    pub(crate) piece: Option<Piece>,
}

/// A finished pack.
#[derive(Debug)]
pub(crate) struct Packed {
    /// `None` if nothing was in it.
    pub(crate) object: Option<(Object, Vec<u8>)>,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) damaged: Vec<String>,
    /// Of the parts of its files, also of those that are known.
    pub(crate) bytes: u64,
}

/// Reads, checks, compresses and encrypts one pack. Blocking.
pub(crate) fn make(job: &Arc<Job>, number: usize, extents: &[Extent]) -> Result<Packed, BackupError> {
    job.idle.with(&job.sealing, |tools| {
        let mut packed = Packed { object: None, outcomes: Vec::new(), damaged: Vec::new(), bytes: 0 };
        // so much of the content is filled
        let mut end = 0;
        for extent in extents {
            take(job, number, extent, (&mut tools.content, &mut end), &mut packed)?;
        }
        let content = tools.content.get(..end).unwrap_or_default();
        if !content.is_empty() {
            let sealed = job.sealing.seal_with(&mut tools.compressor, content)?;
            let name = format!("pack-{number:05}.{}", job.sealing.extension());
            let blake3 = blake3::hash(&sealed).to_hex().to_string();
            packed.object = Some((Object { name, bytes: len(&sealed), blake3 }, sealed));
        }
        Ok(packed)
    })
}

/// Reads an extent to the end of the content, where what the backup needs of it stays.
fn take(
    job: &Arc<Job>,
    number: usize,
    extent: &Extent,
    (content, end): (&mut Vec<u8>, &mut usize),
    packed: &mut Packed,
) -> Result<(), BackupError> {
    let Some(found) = job.files.get(extent.file) else { return Ok(()) };
    let place = job.data.join(&found.path);
    let mut outcome =
        Outcome { file: extent.file, begins: extent.at == 0, end: None, blake3: None, on_parent: false, piece: None };
    let whole = found.pages.is_none() && extent.at == 0 && extent.bytes == found.bytes;
    let read = match found.path == CONTROL_FILE {
        true => settled(job, &place, extent, (content, *end)),
        false => read(job, &place, extent, whole, (content, *end)),
    };
    let Some((file, filled)) = read? else {
        packed.outcomes.push(outcome);
        return Ok(());
    };
    let filled = if found.pages.is_some() { filled / PAGE * PAGE } else { filled };
    let bytes = content.get_mut(*end..*end + filled).unwrap_or_default();
    if let Some(kind) = found.pages.as_ref().filter(|_| job.check_pages) {
        check(job, &file, &place, found, kind.number, extent.at, bytes, &mut packed.damaged)?;
    }
    outcome.end = Some(extent.at + len(bytes));
    if whole {
        outcome.blake3 = Some(blake3::hash(bytes).to_hex().to_string());
    }
    let (mut taken, mut pages) = (bytes.len(), None);
    if let Some((parent, before)) = job.parent.as_ref().and_then(|p| Some((p, p.files.get(&found.path)?))) {
        if found.pages.is_some() {
            outcome.on_parent = true;
            let runs = changed(bytes, extent.at, before.bytes, parent.start);
            taken = gather(bytes, extent.at, &runs);
            pages = Some(runs).filter(|_| taken > 0 && taken < bytes.len());
        } else if outcome.blake3.is_some() && outcome.blake3 == before.blake3 {
            outcome.on_parent = true;
            taken = 0;
        }
    }
    if taken > 0 {
        let same = outcome.blake3.clone().filter(|_| taken == bytes.len());
        let taken_bytes = bytes.get(..taken).unwrap_or_default();
        let blake3 = same.unwrap_or_else(|| blake3::hash(taken_bytes).to_hex().to_string());
        let bytes_taken = len(taken_bytes);
        // the control file is alone in its pack, and tiny
        let known = job.known.find(bytes_taken, &blake3).filter(|_| found.path != CONTROL_FILE);
        let (pack, offset, steps) = match known {
            Some((pack, part)) => (job.known_from + pack, part.offset, part.steps),
            None => {
                let steps = found.pages.is_some() && bytes.get_mut(..taken).is_some_and(steps::apply);
                let offset = u64::try_from(*end).unwrap_or(u64::MAX);
                *end += taken;
                (number, offset, steps)
            }
        };
        packed.bytes += bytes_taken;
        outcome.piece = Some(Piece { pack, offset, bytes: bytes_taken, blake3, at: extent.at, pages, steps });
    }
    packed.outcomes.push(outcome);
    Ok(())
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// A file that the server overwrites in place: until it reads the same twice.
fn settled(
    job: &Job,
    place: &Path,
    extent: &Extent,
    (room, begin): (&mut Vec<u8>, usize),
) -> Result<Option<(File, usize)>, BackupError> {
    let mut before: Option<Vec<u8>> = None;
    for _ in 0..READS_MAX {
        let Some((file, filled)) = read(job, place, extent, true, (room, begin))? else { return Ok(None) };
        let now = room.get(begin..begin + filled).unwrap_or_default();
        if before.as_deref() == Some(now) {
            return Ok(Some((file, filled)));
        }
        before = Some(now.to_vec());
    }
    Err(BackupError::Unfit(format!("{} changes with every look at it", place.display())))
}

/// Reads an extent into `room` from `begin` on, which grows; says how much of it there is. `None` if the file has gone.
///
/// `whole`: the extent is a file without pages, which may be another and longer one than when it was found (settings are
/// replaced by renaming). Half of it would be worse than none: it is read as long as it is now.
fn read(
    job: &Job,
    place: &Path,
    extent: &Extent,
    whole: bool,
    (room, begin): (&mut Vec<u8>, usize),
) -> Result<Option<(File, usize)>, BackupError> {
    let Some(file) = there(File::open(place), "open", place)? else { return Ok(None) };
    let wanted = if whole {
        let now = file.metadata().map_err(BackupError::io("look at", place))?.len();
        now.max(extent.bytes).min(WHOLE_MAX)
    } else {
        extent.bytes
    };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let needed = begin.saturating_add(wanted);
    if room.len() < needed {
        let larger = needed.next_power_of_two();
        match begin {
            // zeros from the system, not written one by one
            0 => *room = vec![0; larger],
            _ => room.resize(larger, 0),
        }
    }
    let mut filled = 0;
    while filled < wanted {
        if job.stop.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let Some(place_for) = room.get_mut(begin + filled..begin + wanted.min(filled + STEP)) else { break };
        let got = file
            .read_at(place_for, extent.at + u64::try_from(filled).unwrap_or(u64::MAX))
            .map_err(BackupError::io("read", place))?;
        if got == 0 {
            break;
        }
        filled += got;
        let got = u64::try_from(got).unwrap_or(0);
        job.read.fetch_add(got, Ordering::Relaxed);
        if let Some(throttle) = &job.throttle {
            throttle.take(got);
        }
    }
    Ok(Some((file, filled)))
}

/// Checks the pages of a chunk; one that looks torn is read again and replaced.
fn check(
    job: &Job,
    file: &File,
    place: &Path,
    found: &Found,
    number: u32,
    at: u64,
    bytes: &mut [u8],
    damaged: &mut Vec<String>,
) -> Result<(), BackupError> {
    let first = u32::try_from(at / u64::try_from(PAGE).unwrap_or(1)).unwrap_or(0);
    for (in_file, page) in (first..).zip(bytes.chunks_exact_mut(PAGE)) {
        let block = number.wrapping_mul(BLOCKS_PER_FILE).wrapping_add(in_file);
        let mut reads = 1;
        while page::judge(page, block, job.start) == Verdict::Wrong {
            if reads == READS_MAX {
                damaged.push(format!("{}:{in_file}", found.path));
                break;
            }
            // the server writes this page just now
            std::thread::sleep(REREAD_AFTER); // tidy: allow, nobody tells when the server has written it
            match file.read_exact_at(page, u64::from(in_file) * u64::try_from(PAGE).unwrap_or(1)) {
                Ok(()) => reads += 1,
                // cut off meanwhile, which replay will do as well
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    page.fill(0);
                }
                Err(error) => return Err(BackupError::io("read", place)(error)),
            }
        }
    }
    Ok(())
}

/// The pages that an incremental backup needs of a chunk: first block and number of each run.
fn changed(bytes: &[u8], at: u64, parent_bytes: u64, since: Lsn) -> Vec<(u64, u64)> {
    let size = u64::try_from(PAGE).unwrap_or(1);
    let known = parent_bytes / size;
    let needed = |(block, page): &(u64, &[u8])| *block >= known || page::is_changed(page, since);
    page::runs((at / size..).zip(bytes.chunks_exact(PAGE)).filter(needed).map(|(block, _)| block))
}

/// Moves the runs' pages to the beginning; how many bytes they are.
fn gather(bytes: &mut [u8], at: u64, runs: &[(u64, u64)]) -> usize {
    let size = u64::try_from(PAGE).unwrap_or(1);
    let place = |blocks: u64| usize::try_from(blocks.saturating_mul(size)).unwrap_or(usize::MAX);
    let mut to = 0;
    for (first, number) in runs {
        let (from, length) = (place(first - at / size), place(*number));
        if from != to {
            bytes.copy_within(from..from + length, to);
        }
        to += length;
    }
    to
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_in_one_pack(lengths in proptest::collection::vec(0u64..200 << 20, 0..40), threads in 1usize..8) {
            let packs = plan(&lengths, threads);
            let mut ends = vec![0; lengths.len()];
            for pack in &packs {
                let filled: u64 = pack.iter().map(|extent| extent.bytes).sum();
                prop_assert!(filled > 0 && filled <= PACK_MAX);
                for extent in pack {
                    prop_assert_eq!(ends[extent.file], extent.at);
                    prop_assert!(extent.bytes <= CHUNK);
                    ends[extent.file] += extent.bytes;
                }
            }
            prop_assert_eq!(ends, lengths);
        }
    }

    #[test]
    fn a_file_that_was_replaced_by_a_longer_one_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("settings.conf"), "a = 'one'\n".repeat(100)).unwrap();
        let found = |bytes| Found { path: "settings.conf".to_owned(), mode: 0o600, bytes, pages: None };
        for (then, whole) in [(10, true), (1_000, true), (70_000, true), (40, false)] {
            let job = Arc::new(Job {
                data: folder.path().to_owned(),
                files: vec![found(if whole { then } else { 4 * then })],
                sealing: Sealing::new(crate::seal::Encryption::Off),
                start: Lsn(0),
                check_pages: true,
                parent: None,
                known: Known::default(),
                known_from: 1,
                throttle: None,
                stop: CancellationToken::new(),
                read: AtomicU64::new(0),
                idle: Idle::default(),
            });
            let packed = make(&job, 0, &[Extent { file: 0, at: 0, bytes: then }]).unwrap();
            assert_eq!(packed.outcomes[0].end, Some(if whole { 1_000 } else { then }), "found with {then}");
        }
    }

    #[test]
    fn changed_pages_of_a_chunk() {
        let mut bytes = vec![1u8; PAGE * 4];
        for (page, lsn) in bytes.chunks_exact_mut(PAGE).zip([5u32, 50, 5, 5]) {
            page[0..4].copy_from_slice(&0u32.to_le_bytes());
            page[4..8].copy_from_slice(&lsn.to_le_bytes());
        }
        let at = u64::try_from(PAGE * 8).unwrap();
        let runs = changed(&bytes, at, at + u64::try_from(PAGE * 3).unwrap(), Lsn(10));
        assert_eq!(runs, [(9, 1), (11, 1)], "a newer one, and one beyond the parent's end");
        let wanted = [&bytes[PAGE..PAGE * 2], &bytes[PAGE * 3..]].concat();
        assert_eq!(gather(&mut bytes, at, &runs), PAGE * 2);
        assert_eq!(bytes[..PAGE * 2], wanted);
        assert_eq!(gather(&mut bytes, at, &[]), 0);
    }
}
