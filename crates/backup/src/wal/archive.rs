//! The log in the repository: names of its objects, what is there, putting and getting.
//!
//! An object's name says what it is and carries two checksums (the first 32 digits of blake3): of the content, and of
//! the stored bytes. So a listing alone shows gaps and conflicts, and damage is found without a key.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};
use zstd::bulk::Compressor;

use super::segment::{History, Segment, history_name, parse_history_name};
use crate::{
    error::BackupError,
    manifest,
    repo::{Listed, Repository},
    seal::{self, Sealing},
};

/// Digits of a checksum in a name: 128 bits.
const HASH: usize = 32;
/// The end of the name of a file that is not whole yet.
pub(crate) const FETCHING: &str = ".fetching";
const USUAL_SEGMENT_BYTES: u64 = 16 << 20;

/// One stored file of the log, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) object: String,
    pub(crate) content_hash: String,
    pub(crate) stored_hash: String,
    pub(crate) bytes: u64,
    pub(crate) written: Micros,
}

/// The beginning of a segment that is still being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) stored: Stored,
}

/// What of the log is in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    pub(crate) segment_bytes: u64,
    pub(crate) segments: BTreeMap<Segment, Stored>,
    pub(crate) parts: BTreeMap<Segment, Vec<Part>>,
    pub(crate) histories: BTreeMap<u32, Stored>,
    /// Read from `histories`.
    pub(crate) parsed: BTreeMap<u32, History>,
    /// Segments that are there with two contents.
    pub(crate) conflicts: Vec<Segment>,
    /// Objects with names that no version of this crate gives.
    pub(crate) unknown: Vec<String>,
}

/// `wal/archive.json`: what cannot be seen from names.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Archive {
    format: u32,
    system_id: u64,
    segment_bytes: u64,
}

pub(crate) fn folder(system_id: u64) -> String {
    format!("{system_id}/wal")
}

fn timeline_folder(system_id: u64, timeline: u32) -> String {
    format!("{system_id}/wal/{timeline:08X}")
}

fn archive_object(system_id: u64) -> String {
    format!("{system_id}/wal/archive.json")
}

impl Inventory {
    /// Sorts a listing.
    pub(crate) fn from_listing(segment_bytes: u64, listing: &[Listed]) -> Self {
        let mut inventory = Self {
            segment_bytes,
            segments: BTreeMap::new(),
            parts: BTreeMap::new(),
            histories: BTreeMap::new(),
            parsed: BTreeMap::new(),
            conflicts: Vec::new(),
            unknown: Vec::new(),
        };
        for listed in listing {
            if !inventory.take(listed) && !listed.name.ends_with("/wal/archive.json") {
                inventory.unknown.push(listed.name.clone());
            }
        }
        for parts in inventory.parts.values_mut() {
            parts.sort_by_key(|part| (part.from, part.to));
        }
        inventory
    }

    fn take(&mut self, listed: &Listed) -> bool {
        let Some((above, file)) = listed.name.rsplit_once('/') else { return false };
        let Some((what, stored)) = parse_name(file, listed) else { return false };
        if let Some(timeline) = parse_history_name(what) {
            self.histories.insert(timeline, stored);
        } else if let Some(segment) = Segment::parse(what, self.segment_bytes) {
            match self.segments.get(&segment) {
                Some(other) if other.content_hash != stored.content_hash => self.conflicts.push(segment),
                _ => drop(self.segments.insert(segment, stored)),
            }
        } else {
            let segment = above.rsplit('/').next().and_then(|name| name.strip_suffix(".partial"));
            let segment = segment.and_then(|name| Segment::parse(name, self.segment_bytes));
            let range = what
                .split_once('-')
                .and_then(|(from, to)| Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?)));
            let (Some(segment), Some((from, to))) = (segment, range) else { return false };
            self.parts.entry(segment).or_default().push(Part { from, to, stored });
        }
        true
    }

    /// The parts of an unfinished segment that follow each other from its beginning, and how far they reach.
    pub(crate) fn beginning(&self, segment: Segment) -> (Vec<&Part>, u64) {
        let parts = self.parts.get(&segment).map(Vec::as_slice).unwrap_or_default();
        let (mut chosen, mut reached) = (Vec::new(), 0);
        while let Some(best) =
            parts.iter().filter(|part| part.from <= reached && part.to > reached).max_by_key(|part| part.to)
        {
            chosen.push(best);
            reached = best.to;
        }
        (chosen, reached)
    }

    /// How far the log of a segment reaches here, if it is here at all.
    pub(crate) fn reach(&self, segment: Segment) -> Option<Lsn> {
        if self.segments.contains_key(&segment) {
            return Some(segment.end(self.segment_bytes));
        }
        let (_, reached) = self.beginning(segment);
        (reached > 0).then(|| Lsn(segment.start(self.segment_bytes).0 + reached))
    }

    /// Objects of segments that end before `lsn`, with their sizes. Histories are never among them.
    pub(crate) fn before(&self, lsn: Lsn) -> Vec<(String, u64)> {
        let old = |segment: &Segment| segment.end(self.segment_bytes) <= lsn;
        let whole = self.segments.iter().filter(|(segment, _)| old(segment)).map(|(_, stored)| stored);
        let parts = self.parts.iter().filter(|(segment, _)| old(segment)).flat_map(|(_, parts)| parts);
        whole.chain(parts.map(|part| &part.stored)).map(|stored| (stored.object.clone(), stored.bytes)).collect()
    }

    /// When the newest of a segment's objects was written.
    pub(crate) fn written(&self, segment: Segment) -> Micros {
        let parts = self.parts.get(&segment).into_iter().flatten().map(|part| part.stored.written);
        parts.chain(self.segments.get(&segment).map(|stored| stored.written)).max().unwrap_or_default()
    }

    /// When the first of a timeline came here.
    pub(crate) fn begun(&self, timeline: u32) -> Micros {
        let of = |segment: &Segment| segment.timeline == timeline;
        let parts = self.parts.iter().filter(|(segment, _)| of(segment)).flat_map(|(_, parts)| parts);
        let log = self.segments.iter().filter(|(segment, _)| of(segment)).map(|(_, stored)| stored.written);
        let history = self.histories.get(&timeline).map(|stored| stored.written);
        log.chain(parts.map(|part| part.stored.written)).chain(history).min().unwrap_or_default()
    }

    /// Timelines that have anything here.
    pub(crate) fn timelines(&self) -> Vec<u32> {
        let all = self.segments.keys().chain(self.parts.keys()).map(|segment| segment.timeline);
        let mut all: Vec<u32> = all.chain(self.histories.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Empty for timeline 1 and where the history file is missing.
    pub(crate) fn history(&self, timeline: u32) -> History {
        self.parsed.get(&timeline).cloned().unwrap_or_default()
    }

    /// All objects that are known, for their checksums.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Stored> {
        let parts = self.parts.values().flatten().map(|part| &part.stored);
        self.segments.values().chain(parts).chain(self.histories.values())
    }
}

/// `<what>.<content>.<stored>.zst[.age]`.
pub(crate) fn parse_name<'a>(file: &'a str, listed: &Listed) -> Option<(&'a str, Stored)> {
    let rest = file.strip_suffix(".zst.age").or_else(|| file.strip_suffix(".zst"))?;
    let (rest, stored_hash) = rest.rsplit_once('.')?;
    let (what, content_hash) = rest.rsplit_once('.')?;
    let is_hash = |text: &str| text.len() == HASH && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hash(stored_hash) && is_hash(content_hash)).then(|| {
        let stored = Stored {
            object: listed.name.clone(),
            content_hash: content_hash.to_owned(),
            stored_hash: stored_hash.to_owned(),
            bytes: listed.bytes,
            written: listed.written,
        };
        (what, stored)
    })
}

pub(crate) fn short_hash(bytes: &[u8]) -> String {
    let mut hex = blake3::hash(bytes).to_hex().to_string();
    hex.truncate(HASH);
    hex
}

/// From a place where it is whole.
async fn read_archive(repo: &Repository, object: &str) -> Result<Archive, BackupError> {
    let read = |bytes: &[u8]| manifest::from_document::<Archive>(object, bytes);
    read(&repo.get_good(object, |bytes| read(bytes).map(drop)).await?)
}

/// Says what the archive is of, or checks that it says the same already.
pub(crate) async fn begin(repo: &Repository, system_id: u64, segment_bytes: u64) -> Result<(), BackupError> {
    let object = archive_object(system_id);
    let archive = Archive { format: manifest::FORMAT, system_id, segment_bytes };
    match repo.create(&object, manifest::to_document(&archive)?).await {
        Err(error) if error.already_exists() => {
            let found = read_archive(repo, &object).await?;
            if found.segment_bytes == segment_bytes {
                return Ok(());
            }
            Err(BackupError::Unfit(format!(
                "its log has segments of {segment_bytes} bytes, and the repository those of {}",
                found.segment_bytes
            )))
        }
        other => other,
    }
}

/// What of the log of a cluster is in the repository, histories read.
///
/// # Errors
/// If the repository cannot be read, or a history file is damaged.
pub async fn inventory(repo: &Repository, system_id: u64) -> Result<Inventory, BackupError> {
    let mut inventory = listed(repo, system_id).await?;
    for (timeline, stored) in &inventory.histories {
        let content = read(repo, stored).await?;
        let history = History::parse(&String::from_utf8_lossy(&content))
            .map_err(|error| BackupError::damaged(&stored.object, error))?;
        inventory.parsed.insert(*timeline, history);
    }
    Ok(inventory)
}

/// The same without the histories: no key is needed.
pub(crate) async fn listed(repo: &Repository, system_id: u64) -> Result<Inventory, BackupError> {
    let listing = repo.list(&folder(system_id)).await?;
    let object = archive_object(system_id);
    let segment_bytes = if listing.iter().any(|listed| listed.name == object) {
        usable(&object, read_archive(repo, &object).await?.segment_bytes)?
    } else {
        USUAL_SEGMENT_BYTES
    };
    Ok(Inventory::from_listing(segment_bytes, &listing))
}

fn usable(object: &str, segment_bytes: u64) -> Result<u64, BackupError> {
    match segment_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&segment_bytes) {
        true => Ok(segment_bytes),
        false => Err(BackupError::damaged(object, "no server has segments of such a size")),
    }
}

/// How long a segment is, without a listing.
pub(crate) async fn segment_bytes(repo: &Repository, system_id: u64) -> Result<u64, BackupError> {
    let object = archive_object(system_id);
    match read_archive(repo, &object).await {
        Ok(archive) => usable(&object, archive.segment_bytes),
        Err(error) if error.is_not_found() => Ok(USUAL_SEGMENT_BYTES),
        Err(error) => Err(error),
    }
}

/// What there is of one segment and of so many that follow it, and of nothing else.
pub(crate) async fn listed_from(
    repo: &Repository,
    system_id: u64,
    segment_bytes: u64,
    (first, more): (Segment, u64),
) -> Result<Inventory, BackupError> {
    let last = Segment { number: first.number.saturating_add(more), ..first };
    let (from, until) = (first.file_name(segment_bytes), last.file_name(segment_bytes));
    let listing = repo.list_between(&timeline_folder(system_id, first.timeline), &from, &until).await?;
    Ok(Inventory::from_listing(segment_bytes, &listing))
}

/// The history of a timeline, if it is there. No other object is looked at.
pub(crate) async fn listed_history(
    repo: &Repository,
    system_id: u64,
    timeline: u32,
) -> Result<Option<Stored>, BackupError> {
    let name = history_name(timeline);
    let listing = repo.list_between(&timeline_folder(system_id, timeline), &name, &name).await?;
    Ok(Inventory::from_listing(USUAL_SEGMENT_BYTES, &listing).histories.remove(&timeline))
}

/// What an upload needs and leaves to the next: memory that is new each time is given by the system page by page.
#[derive(Default)]
pub(crate) struct Rooms {
    compressors: Mutex<Vec<Compressor<'static>>>,
    contents: Mutex<Vec<Vec<u8>>>,
    /// What the last upload took: to seal, to store.
    took: Mutex<(Duration, Duration)>,
}

/// How urgent an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Usual,
    /// Much more waits: compressed less if compressing is what takes the time.
    Behind,
}

fn held<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // a holder that panicked left nothing half done
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rooms {
    /// Empty, with room for so much.
    pub(crate) fn content(&self, bytes: usize) -> Vec<u8> {
        let mut content = held(&self.contents).pop().unwrap_or_default();
        content.clear();
        content.reserve(bytes);
        content
    }

    /// Nobody needs it any more.
    pub(crate) fn give_back(&self, content: Arc<Vec<u8>>) {
        held(&self.contents).extend(Arc::try_unwrap(content));
    }

    fn sealing(&self, sealing: &Sealing, pace: Pace) -> Sealing {
        let (seal, store) = *held(&self.took);
        match pace {
            Pace::Behind if seal > store => sealing.hasty(),
            Pace::Behind | Pace::Usual => sealing.clone(),
        }
    }

    fn seal(&self, sealing: &Sealing, content: &[u8]) -> Result<Vec<u8>, BackupError> {
        let found = held(&self.compressors).pop();
        let mut compressor = found.map_or_else(|| sealing.compressor(), Ok)?;
        let sealed = sealing.seal_with(&mut compressor, content);
        held(&self.compressors).push(compressor);
        sealed
    }
}

/// Seals and uploads a file of the log, or a piece of one; returns once it is durable.
pub(crate) async fn put(
    repo: &Repository,
    rooms: &Arc<Rooms>,
    (timeline, system_id): (u32, u64),
    what: &str,
    (content, pace): (Arc<Vec<u8>>, Pace),
) -> Result<(), BackupError> {
    let begun = Instant::now();
    let (sealing, of) = (rooms.sealing(&repo.sealing, pace), rooms.clone());
    let (hash, stored_hash, sealed) = crate::blocking(move || {
        let sealed = of.seal(&sealing, &content)?;
        Ok((short_hash(&content), short_hash(&sealed), sealed))
    })
    .await?;
    let object = format!("{system_id}/wal/{timeline:08X}/{what}.{hash}.{stored_hash}.{}", repo.sealing.extension());
    let sealed_in = begun.elapsed();
    repo.put(&object, sealed.into()).await?;
    *held(&rooms.took) = (sealed_in, begun.elapsed().saturating_sub(sealed_in));
    Ok(())
}

/// The content of a stored file, both checksums checked.
pub(crate) async fn read(repo: &Repository, stored: &Stored) -> Result<Vec<u8>, BackupError> {
    let sealed = repo.get_whole(&stored.object, &stored.stored_hash).await?;
    let (stored, keys) = (stored.clone(), repo.keys.clone());
    crate::blocking(move || {
        let content = seal::unseal(&stored.object, &sealed, &keys)?;
        if short_hash(&content) != stored.content_hash {
            return Err(BackupError::damaged(&stored.object, "the checksum of its content is wrong"));
        }
        Ok(content)
    })
    .await
}

/// A whole segment; an unfinished one is filled up with zeros, as the server itself does.
pub(crate) async fn read_segment(
    repo: &Repository,
    inventory: &Inventory,
    segment: Segment,
) -> Result<Vec<u8>, BackupError> {
    let name = || segment.file_name(inventory.segment_bytes);
    if inventory.conflicts.contains(&segment) {
        return Err(BackupError::WalConflict { name: name() });
    }
    if let Some(stored) = inventory.segments.get(&segment) {
        return read(repo, stored).await;
    }
    let (parts, reached) = inventory.beginning(segment);
    if reached == 0 {
        return Err(BackupError::WalAbsent { name: name() });
    }
    let length = usize::try_from(inventory.segment_bytes).unwrap_or(usize::MAX);
    let mut content = vec![0; length];
    for part in parts {
        let bytes = read(repo, &part.stored).await?;
        let place = usize::try_from(part.from).unwrap_or(usize::MAX);
        content
            .get_mut(place..place.saturating_add(bytes.len()))
            .ok_or_else(|| BackupError::damaged(&part.stored.object, "it is longer than a segment"))?
            .copy_from_slice(&bytes);
    }
    Ok(content)
}

/// As [`read_segment`], although the log's archive goes on meanwhile: parts that were listed are removed once their
/// segment is there as a whole.
pub(crate) async fn read_segment_now(
    repo: &Repository,
    system_id: u64,
    known: &Inventory,
    segment: Segment,
) -> Result<Vec<u8>, BackupError> {
    match read_segment(repo, known, segment).await {
        Err(error) if error.is_not_found() => {
            let anew = listed_from(repo, system_id, known.segment_bytes, (segment, 0)).await?;
            read_segment(repo, &anew, segment).await
        }
        read => read,
    }
}

/// Where a file is written before it is renamed to its name.
pub(crate) fn beside(to: &Path) -> PathBuf {
    let mut temporary = to.to_owned().into_os_string();
    temporary.push(FETCHING);
    PathBuf::from(temporary)
}

pub(crate) async fn write_file(to: PathBuf, content: Vec<u8>) -> Result<(), BackupError> {
    crate::blocking(move || {
        let temporary = beside(&to);
        let written = std::fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(&content)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &to)
        });
        written.map_err(BackupError::io("write", to))
    })
    .await
}

/// Keeps a history file of a timeline; again the same is fine.
pub(crate) async fn put_history(
    repo: &Repository,
    inventory: &Inventory,
    system_id: u64,
    timeline: u32,
    content: String,
) -> Result<(), BackupError> {
    let name = history_name(timeline);
    match inventory.histories.get(&timeline) {
        Some(stored) if stored.content_hash == short_hash(content.as_bytes()) => Ok(()),
        Some(_) => Err(BackupError::WalConflict { name }),
        None => {
            let content = (Arc::new(content.into_bytes()), Pace::Usual);
            put(repo, &Arc::default(), (timeline, system_id), &name, content).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB16: u64 = 16 << 20;

    fn listed(name: &str) -> Listed {
        Listed { name: name.to_owned(), bytes: 1, written: Micros(0) }
    }

    fn inventory(names: &[&str]) -> Inventory {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        let full = |name: &&str| listed(&format!("7/wal/{}", name.replace('#', &format!("{a}.{b}.zst.age"))));
        Inventory::from_listing(MIB16, &names.iter().map(full).collect::<Vec<_>>())
    }

    #[test]
    fn names_say_what_is_there() {
        let inventory = inventory(&[
            "archive.json",
            "00000001/000000010000000000000001.#",
            "00000001/000000010000000000000002.partial/00000000-00000100.#",
            "00000001/000000010000000000000002.partial/00000100-00000180.#",
            "00000001/000000010000000000000002.partial/00000200-00000280.#",
            "00000002/00000002.history.#",
            "00000001/something",
        ]);
        let at = |number| Segment { timeline: 1, number };
        assert_eq!(inventory.reach(at(1)), Some(Lsn(2 * MIB16)));
        assert_eq!(inventory.reach(at(2)), Some(Lsn(2 * MIB16 + 0x180)), "what follows a hole does not count");
        assert_eq!(inventory.reach(at(3)), None);
        assert_eq!(inventory.timelines(), [1, 2]);
        assert_eq!(inventory.unknown, ["7/wal/00000001/something"]);
        assert_eq!(inventory.objects().count(), 5);
    }

    #[test]
    fn compresses_less_only_while_compressing_holds_it_up() {
        let (rooms, usual) = (Rooms::default(), Sealing::new(crate::seal::Encryption::Off));
        let (long, short) = (Duration::from_millis(70), Duration::from_millis(20));
        let level = |pace| rooms.sealing(&usual, pace).level;
        assert_eq!(level(Pace::Behind), 3, "nothing is known yet");
        *held(&rooms.took) = (long, short);
        assert_eq!((level(Pace::Behind), level(Pace::Usual)), (1, 3));
        *held(&rooms.took) = (short, long);
        assert_eq!(level(Pace::Behind), 3, "the repository takes the time: more bytes would take longer");

        // one compressor serves both
        let content = "what is repeated is compressed; ".repeat(2_000).into_bytes();
        for pace in [Pace::Behind, Pace::Usual, Pace::Behind] {
            *held(&rooms.took) = (long, short);
            let sealed = rooms.seal(&rooms.sealing(&usual, pace), &content).unwrap();
            assert_eq!(seal::unseal("a.zst", &sealed, &seal::Keys::default()).unwrap(), content);
        }
        assert_eq!(held(&rooms.compressors).len(), 1);
    }

    #[test]
    fn two_contents_of_one_segment_are_a_conflict() {
        let names = ["00000001/000000010000000000000001.#"];
        let mut listing = vec![listed(&format!("7/wal/{}", names[0].replace('#', &"x".repeat(3))))];
        let (a, b, c) = ("a".repeat(32), "b".repeat(32), "c".repeat(32));
        for (content, stored) in [(&a, &b), (&c, &b), (&a, &c)] {
            listing.push(listed(&format!("7/wal/00000001/000000010000000000000001.{content}.{stored}.zst")));
        }
        let inventory = Inventory::from_listing(MIB16, &listing);
        assert_eq!(inventory.conflicts, [Segment { timeline: 1, number: 1 }]);
        assert_eq!(inventory.segments.len(), 1);
        assert_eq!(inventory.unknown.len(), 1);
    }
}
