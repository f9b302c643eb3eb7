//! Segments that a server is going to ask for, brought beforehand into a folder of its host.
//!
//! ```text
//! <spool>/lock                              held by the one process that fills it
//! <spool>/<system id>/<segment>             whole: both checksums were right, it is on disk
//! <spool>/<system id>/<segment>.fetching    is being brought, if the lock is held
//! <spool>/<system id>/wanted                the segment that was asked for last
//! ```
//!
//! Invariants: a cluster gets nothing but its own log; a name without an ending is a whole segment, wherever a process was
//! killed; no one waits for a process that is gone. Segments put together from parts and histories never come here: the
//! one may grow and the other is asked for once.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use millrace_base::files;
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
    process::{Flock, FlockType, fcntl_getlk},
};
use tokio::time::Instant;

use super::{
    archive::{self, Inventory, Stored, beside, read, write_file},
    segment::Segment,
};
use crate::{error::BackupError, repo::Repository};

/// A segment that is being brought is waited for so long, and then fetched directly.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);
/// So many windows are listed at once.
const WINDOWS_LISTED: u64 = 16;
const WANTED: &str = "wanted";

/// The spool of one server, for the log of one cluster. Nothing is made before [`Spool::make`].
#[derive(Debug, Clone)]
pub struct Spool {
    lock: PathBuf,
    folder: PathBuf,
    system_id: u64,
}

/// What [`Spool::fill`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Another process is at it.
    Busy,
    /// It brought so many segments.
    Brought(usize),
}

/// Held until the process ends, however it ends.
#[derive(Debug)]
struct Lock(#[expect(dead_code, reason = "closing it lets go of the lock")] File);

impl Spool {
    #[must_use]
    pub fn new(folder: &Path, system_id: u64) -> Self {
        Self { lock: folder.join("lock"), folder: folder.join(system_id.to_string()), system_id }
    }

    /// Makes its folders.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn make(&self) -> Result<(), BackupError> {
        files::create_dir_all(&self.folder, 0o700).map_err(BackupError::io("make", &self.folder))
    }

    /// Moves a segment to `to` if it is here, and waits for it if it is being brought just now. False if it must be
    /// fetched.
    ///
    /// # Errors
    /// If it is here and cannot be moved.
    pub async fn take(&self, name: &str, to: &Path) -> Result<bool, BackupError> {
        // nothing else may become a part of a path
        if !is_segment(name) {
            return Ok(false);
        }
        let until = Instant::now() + WAIT_MAX;
        loop {
            if self.move_out(name, to).await? {
                return Ok(true);
            }
            if !self.is_coming(name) || Instant::now() > until {
                // it may have come since the first look
                return self.move_out(name, to).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn move_out(&self, name: &str, to: &Path) -> Result<bool, BackupError> {
        let here = self.folder.join(name);
        match fs::rename(&here, to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let content = match fs::read(&here) {
                    Ok(content) => content,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                    Err(error) => return Err(BackupError::io("read", here)(error)),
                };
                write_file(to.to_owned(), content).await?;
                remove(&here)?;
                Ok(true)
            }
            Err(error) => Err(BackupError::io("move", here)(error)),
        }
    }

    fn is_coming(&self, name: &str) -> bool {
        beside(&self.folder.join(name)).exists() && self.is_filling()
    }

    /// Whether a process fills it. One that dies does so no more.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        let held = || fcntl_getlk(File::open(&self.lock).ok()?, &Flock::from(FlockType::WriteLock)).ok()?;
        held().is_some()
    }

    /// Notes which segment is asked for, and says whether what follows it here is less than half of `ahead`.
    ///
    /// # Errors
    /// If the folder cannot be read or written.
    pub fn wants_more(&self, name: &str, ahead: u32) -> Result<bool, BackupError> {
        let wanted = self.folder.join(WANTED);
        fs::write(&wanted, name).map_err(BackupError::io("write", wanted))?;
        Ok(is_low(&self.names()?, name, ahead))
    }

    /// Brings the next `ahead` segments after `name`, several at a time, and goes on for as long as the server does. Ends
    /// when all are here, or at the first that is not in the repository as a whole. What is of no use any more is removed
    /// before.
    ///
    /// # Errors
    /// If one cannot be brought: whoever asks for it meets the same.
    pub async fn fill(&self, repo: &Repository, name: &str, ahead: u32, threads: usize) -> Result<Filled, BackupError> {
        self.make()?;
        let Some(_lock) = self.hold()? else { return Ok(Filled::Busy) };
        let segment_bytes = archive::segment_bytes(repo, self.system_id).await?;
        let absent = || BackupError::WalAbsent { name: name.to_owned() };
        let mut window = Window::new(Segment::parse(name, segment_bytes).ok_or_else(absent)?, ahead);
        for name in window.of_no_use(&self.names()?, segment_bytes) {
            remove(&self.folder.join(name))?;
        }
        let (mut brought, mut failed) = (0, None);
        let (mut listed_to, mut inventory) = (window.next, Inventory::from_listing(segment_bytes, &[]));
        let mut coming = FuturesUnordered::new();
        loop {
            if let Ok(asked) = fs::read_to_string(self.folder.join(WANTED)) {
                window.moves_to(Segment::parse(&asked, segment_bytes));
            }
            while failed.is_none() && coming.len() < threads.max(1) && window.has_next() {
                if window.next >= listed_to {
                    let more = u64::from(ahead) * WINDOWS_LISTED;
                    let from = (window.next, more.saturating_sub(1));
                    inventory = archive::listed_from(repo, self.system_id, segment_bytes, from).await?;
                    listed_to = Segment { number: window.next.number + more, ..window.next };
                }
                let Some(stored) = whole(&inventory, window.next) else { break };
                let place = self.folder.join(window.next.file_name(segment_bytes));
                if !place.exists() {
                    coming.push(bring(repo, stored.clone(), place));
                }
                window.next = window.next.next();
            }
            match coming.next().await {
                Some(Ok(())) => brought += 1,
                // the others are brought to their end: they come before it, or have begun
                Some(Err(error)) => failed = failed.or(Some(error)),
                None => return failed.map_or(Ok(Filled::Brought(brought)), Err),
            }
        }
    }

    fn hold(&self) -> Result<Option<Lock>, BackupError> {
        let failed = |error: io::Error| BackupError::io("lock", &self.lock)(error);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.lock);
        let file = file.map_err(failed)?;
        // of the process, unlike flock's: who looks whether it is held never holds it
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Of all files; none if the folder is not there.
    fn names(&self) -> Result<BTreeSet<String>, BackupError> {
        match fs::read_dir(&self.folder) {
            Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(BackupError::io("list", &self.folder)(error)),
        }
    }
}

async fn bring(repo: &Repository, stored: Stored, place: PathBuf) -> Result<(), BackupError> {
    // who asks for it meanwhile sees that it is on its way
    let mark = beside(&place);
    File::create(&mark).map_err(BackupError::io("write", &mark))?;
    let brought = async { write_file(place, read(repo, &stored).await?).await }.await;
    if brought.is_err() {
        remove(&mark)?;
    }
    brought
}

/// That it is not there is no error.
fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BackupError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A segment's name, however long segments are.
fn is_segment(name: &str) -> bool {
    Segment::parse(name, 1 << 20).is_some()
}

/// There is one content of all of it.
fn whole(inventory: &Inventory, segment: Segment) -> Option<&Stored> {
    inventory.segments.get(&segment).filter(|_| !inventory.conflicts.contains(&segment))
}

/// Of `ahead` segments right after `wanted` fewer than half are here.
fn is_low(names: &BTreeSet<String>, wanted: &str, ahead: u32) -> bool {
    let next = |of: &str| following(of).into_iter().flatten().find_map(|name| names.get(&name));
    let in_a_row = std::iter::successors(next(wanted), |name| next(name));
    in_a_row.count() * 2 < usize::try_from(ahead).unwrap_or(usize::MAX)
}

/// What the segment after one may be called, however long segments are: the last field begins anew with each 4 GiB.
fn following(name: &str) -> [Option<String>; 2] {
    let field = |range| name.get(range).and_then(|digits: &str| u32::from_str_radix(digits, 16).ok());
    let (timeline, high, low) = (name.get(..8).unwrap_or_default(), field(8..16), field(16..24));
    let further = |field: Option<u32>| field.and_then(|field| field.checked_add(1));
    [
        high.zip(further(low)).map(|(high, low)| format!("{timeline}{high:08X}{low:08X}")),
        further(high).map(|high| format!("{timeline}{high:08X}00000000")),
    ]
}

/// The segments that are to be here: those after the one that was asked for last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    wanted: Segment,
    ahead: u64,
    /// The first that has not been looked after yet.
    next: Segment,
}

impl Window {
    fn new(wanted: Segment, ahead: u32) -> Self {
        Self { wanted, ahead: u64::from(ahead), next: wanted.next() }
    }

    fn has_next(&self) -> bool {
        self.next.number <= self.wanted.number.saturating_add(self.ahead)
    }

    /// The server goes on. That it goes back, or to another timeline, is for the next process.
    fn moves_to(&mut self, wanted: Option<Segment>) {
        if let Some(wanted) = wanted.filter(|wanted| wanted.timeline == self.wanted.timeline && *wanted > self.wanted) {
            self.wanted = wanted;
            self.next = self.next.max(wanted.next());
        }
    }

    /// Files that are neither in the window nor the note of what is wanted.
    fn of_no_use(&self, names: &BTreeSet<String>, segment_bytes: u64) -> Vec<String> {
        let of_use = |name: &str| {
            let within = |segment: Segment| {
                segment.timeline == self.wanted.timeline
                    && segment > self.wanted
                    && segment.number <= self.wanted.number.saturating_add(self.ahead)
            };
            name == WANTED || Segment::parse(name, segment_bytes).is_some_and(within)
        };
        names.iter().filter(|name| !of_use(name)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{archive::FETCHING, *};

    const MIB16: u64 = 16 << 20;

    fn at(number: u64) -> Segment {
        Segment { timeline: 1, number }
    }

    fn names(all: &[Segment]) -> BTreeSet<String> {
        all.iter().map(|segment| segment.file_name(MIB16)).collect()
    }

    #[test]
    fn more_is_brought_when_less_than_half_is_left() {
        let of_another = Segment { timeline: 2, number: 300 };
        let mut here = names(&[at(253), at(254), at(255), at(256), at(257), of_another]);
        here.extend([WANTED.to_owned(), format!("{}{FETCHING}", at(258).file_name(MIB16))]);
        let low = |wanted: u64, ahead| is_low(&here, &at(wanted).file_name(MIB16), ahead);
        assert!(!low(253, 8), "four are as much as half");
        assert!(low(254, 8) && !low(254, 6));
        assert!(low(257, 1) && !low(257, 0));
        assert!(low(200, 8), "what waits is far ahead: the server has gone back");
    }

    #[test]
    fn a_window_moves_with_the_server() {
        let mut window = Window::new(at(254), 3);
        let mut looked_after = Vec::new();
        let mut go = |window: &mut Window| {
            while window.has_next() {
                looked_after.push(window.next.number);
                window.next = window.next.next();
            }
        };
        go(&mut window);
        window.moves_to(Some(at(253)));
        window.moves_to(Some(Segment { timeline: 2, number: 300 }));
        window.moves_to(None);
        go(&mut window);
        window.moves_to(Some(at(256)));
        go(&mut window);
        // what it has passed is not brought any more
        window.moves_to(Some(at(270)));
        go(&mut window);
        assert_eq!(looked_after, [255, 256, 257, 258, 259, 271, 272, 273]);
    }

    #[test]
    fn what_the_server_has_passed_goes() {
        let of_another = Segment { timeline: 2, number: 256 };
        let mut here = names(&[at(253), at(254), at(255), at(256), at(257), of_another]);
        let unfinished = format!("{}{FETCHING}", at(256).file_name(MIB16));
        here.extend([WANTED.to_owned(), unfinished.clone(), "something".to_owned()]);
        let mut gone = names(&[at(253), at(254), at(257), of_another]);
        gone.extend([unfinished, "something".to_owned()]);
        let told = Window::new(at(254), 2).of_no_use(&here, MIB16);
        assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), gone);
    }

    #[test]
    fn only_names_of_segments_are_looked_for() {
        for name in ["00000002.history", "../000000010000000000000001", "", "00000001000000000000000g"] {
            assert!(!is_segment(name), "{name}");
        }
        assert!(is_segment("0000000100000000000000FF") && is_segment("000000010000000000000FFF"));
    }
}
