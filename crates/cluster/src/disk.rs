//! Whether a disk takes what is written to it, and has room.
//!
//! A server whose disk hangs answers questions from memory while each of its commits waits. So about once a second a few
//! bytes are written where its data is, and seen onto the disk.
//!
//! Invariants: one write at a time for each [`Disk`]; whoever looks never waits for it. A thread does it that is not
//! joined: one that waits for a disk cannot be ended by anybody, and a program with such a thread ends when the disk
//! answers.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use millrace_base::Clock;
use millrace_pg::{RunAs, ServerSpec};
use rustix::fs::OFlags;

use crate::observed::DiskView;

const FILE: &str = "disk.probe";
/// Overwritten in place, as a server overwrites its log: no new block is needed on a disk that is full.
const TEXT: &[u8] = b"millrace writes this about once a second, to see that the disk takes it\n";
const PAUSE: Duration = Duration::from_secs(1);
/// A write that takes less is nothing to speak of.
const NOTICED: Duration = Duration::from_secs(1);
/// One look proves nothing: this process may have been stopped itself.
const APART: Duration = Duration::from_millis(500);
/// A disk with less is full: four segments of log.
const FULL_BYTES: u64 = 64 << 20;
/// One that was full has room again from this on.
const ROOM_BYTES: u64 = 2 * FULL_BYTES;

/// A disk, or two if a server's log is on one of its own.
#[derive(Debug)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    /// The write that was under way at the last look, and when it was first seen.
    seen: Option<(Duration, Duration)>,
    /// Dropped, it ends the thread.
    _watched: mpsc::Sender<()>,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    /// When the write that is under way began.
    begun: Option<Duration>,
    full: bool,
}

impl Disk {
    /// Where a server's data is, and its log.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn of_server(server: &ServerSpec, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let (folder, data, owner) = (server.folder.clone(), server.data_dir(), server.run_as.clone());
        Self::watch(clock, Some(owner), move || places(&folder, &data))
    }

    /// # Errors
    /// If there can be no thread.
    pub(crate) fn of_folder(folder: PathBuf, clock: Arc<dyn Clock>) -> io::Result<Self> {
        Self::watch(clock, None, move || Ok(vec![folder.clone()]))
    }

    fn watch(
        clock: Arc<dyn Clock>,
        owner: Option<RunAs>,
        places: impl Fn() -> io::Result<Vec<PathBuf>> + Send + 'static,
    ) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let (watched, is_watched) = mpsc::channel::<()>();
        let shared = state.clone();
        let set = move |change: &dyn Fn(&mut State)| change(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
        thread::Builder::new().name("disk".to_owned()).spawn(move || {
            let mut refused = false;
            loop {
                let begun = clock.monotonic();
                set(&|state| state.begun = Some(begun));
                // an error is an answer
                match try_all(&places, owner.as_ref()) {
                    Ok(free) => {
                        set(&|state| state.full = free < if state.full { ROOM_BYTES } else { FULL_BYTES });
                        refused = false;
                    }
                    Err((path, error)) if !std::mem::replace(&mut refused, true) => {
                        tracing::warn!(path = %path.display(), %error, "a disk refuses to be written to");
                    }
                    Err(_) => {}
                }
                set(&|state| state.begun = None);
                if is_watched.recv_timeout(PAUSE) == Err(mpsc::RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })?;
        Ok(Self { state, seen: None, _watched: watched })
    }

    pub(crate) fn look(&mut self, now: Duration) -> DiskView {
        let State { begun, full } = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.seen = begun.map(|begun| (begun, self.seen.filter(|seen| seen.0 == begun).map_or(now, |seen| seen.1)));
        let stuck = |(begun, seen): &(Duration, Duration)| {
            now.saturating_sub(*begun) >= NOTICED && now.saturating_sub(*seen) >= APART
        };
        DiskView { stuck_since: self.seen.filter(stuck).map(|(begun, _)| begun), full }
    }
}

/// Beside the data directory, not within, where that is the same file system: what is within is copied to replicas.
fn places(folder: &Path, data: &Path) -> io::Result<Vec<PathBuf>> {
    let of = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.dev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let log = data.join("pg_wal");
    let (of_folder, of_data, of_log) = (of(folder)?, of(data)?, of(&log)?);
    // nothing has been made here yet
    let Some(data_is_on) = of_data else { return Ok(Vec::new()) };
    let beside = of_folder == Some(data_is_on);
    let mut places = vec![if beside { folder } else { data }.to_owned()];
    places.extend(of_log.filter(|log| *log != data_is_on).map(|_| log));
    Ok(places)
}

/// Writes everywhere; returns the least room that an ordinary user has, in bytes.
fn try_all(places: &impl Fn() -> io::Result<Vec<PathBuf>>, owner: Option<&RunAs>) -> Result<u64, (PathBuf, io::Error)> {
    let mut least = u64::MAX;
    for place in places().map_err(|error| (PathBuf::new(), error))? {
        let path = place.join(FILE);
        let tried = free_bytes(&place).and_then(|free| match write(&path, owner) {
            // it says so by its room already
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(0),
            written => written.map(|()| free),
        });
        least = least.min(tried.map_err(|error| (path, error))?);
    }
    Ok(least)
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    // some file systems do not count
    Ok(if stat.f_blocks == 0 { u64::MAX } else { stat.f_bavail.saturating_mul(stat.f_frsize) })
}

fn write(path: &Path, owner: Option<&RunAs>) -> io::Result<()> {
    // the folder is the servers' user's, who could have put anything there
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    let mut file = match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, owner)?,
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a file"));
    }
    file.write_all(TEXT)?;
    file.sync_data()
}

fn make(path: &Path, owner: Option<&RunAs>) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(owner) = owner {
        owner.own(path).map_err(io::Error::other)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use millrace_base::SystemClock;

    use super::*;

    fn disk(begun: Option<u64>) -> Disk {
        let state = State { begun: begun.map(Duration::from_millis), full: false };
        Disk { state: Arc::new(Mutex::new(state)), seen: None, _watched: mpsc::channel().0 }
    }

    fn stuck(disk: &mut Disk, now: u64) -> Option<u64> {
        let since = disk.look(Duration::from_millis(now)).stuck_since;
        since.map(|since| u64::try_from(since.as_millis()).unwrap())
    }

    #[test]
    fn a_write_that_lasts_is_seen_twice_before_it_counts() {
        let mut one = disk(Some(1_000));
        assert_eq!(stuck(&mut one, 1_100), None);
        assert_eq!(stuck(&mut one, 1_900), None, "not long yet");
        assert_eq!(stuck(&mut one, 2_000), Some(1_000));
        // the next one
        one.state.lock().unwrap().begun = Some(Duration::from_millis(3_000));
        assert_eq!(stuck(&mut one, 3_100), None);
        one.state.lock().unwrap().begun = None;
        assert_eq!(stuck(&mut one, 9_000), None);

        let mut after_a_pause = disk(Some(1_000));
        assert_eq!(stuck(&mut after_a_pause, 60_000), None, "this process may have been stopped");
        assert_eq!(stuck(&mut after_a_pause, 60_500), Some(1_000));
    }

    #[test]
    fn what_is_on_one_file_system_is_written_to_once() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, data) = (folder.path(), folder.path().join("data"));
        assert_eq!(places(folder, &data).unwrap(), [] as [PathBuf; 0]);
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        assert_eq!(places(folder, &data).unwrap(), [folder]);
        // another one that every machine has
        fs::remove_dir(data.join("pg_wal")).unwrap();
        symlink("/proc", data.join("pg_wal")).unwrap();
        assert_eq!(places(folder, &data).unwrap(), [folder, &data.join("pg_wal")]);
    }

    #[test]
    fn a_folder_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let place = || Ok(vec![folder.path().to_owned()]);
        assert!(try_all(&place, None).unwrap() > 0);
        assert!(try_all(&place, None).unwrap() > 0, "again");
        assert_eq!(fs::read(folder.path().join(FILE)).unwrap(), TEXT);
        let gone = || Ok(vec![PathBuf::from("/nonexistent")]);
        assert_eq!(try_all(&gone, None).unwrap_err().0, PathBuf::from("/nonexistent/disk.probe"));

        let clock = Arc::new(SystemClock::new());
        let disk = Disk::of_folder(folder.path().to_owned(), clock).unwrap();
        let thread = Arc::downgrade(&disk.state);
        drop(disk);
        while thread.upgrade().is_some() {
            thread::yield_now();
        }
    }
}
