//! The platform's lock: one supervisor at a time, whatever happened before.
//!
//! The kernel lets go of it when the process ends, however it ends; the number inside is only for people.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// A killed process keeps the lock until the last of its threads has gone; no longer than this.
pub(crate) const DYING_MAX: Duration = Duration::from_secs(10);

/// Held as long as the platform runs.
#[derive(Debug)]
pub(crate) struct PlatformLock {
    file: File,
}

/// Someone else holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// The holder, as far as it has said so yet.
    pub(crate) pid: Option<u32>,
}

/// Takes the lock or says who has it.
pub(crate) fn take(path: &Path) -> anyhow::Result<Result<PlatformLock, Held>> {
    loop {
        let taken = take_file(path)?;
        // one who held it may have deleted it since it was opened here: then it guards nothing
        if let Ok(lock) = &taken
            && !is_at(&lock.file, path)
        {
            continue;
        }
        return Ok(taken);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => identity(held) == identity(there),
        _ => false,
    }
}

fn take_file(path: &Path) -> anyhow::Result<Result<PlatformLock, Held>> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open the platform's lock {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            return Ok(Err(Held { pid: text.trim().parse().ok() }));
        }
        Err(errno) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Ok(PlatformLock { file }))
}

/// Who holds it now; `None` if no one does.
pub(crate) fn holder(path: &Path) -> anyhow::Result<Option<Held>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut file = File::open(path).with_context(|| format!("cannot open the platform's lock {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Some(Held { pid: text.trim().parse().ok() }))
        }
        Err(errno) => Err(errno).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// Waits until no one holds it; false if someone still does at the deadline.
pub(crate) async fn wait_free(path: &Path, deadline: Duration) -> anyhow::Result<bool> {
    let waiting = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while holder(path)?.is_some() {
            tick.tick().await;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(deadline, waiting).await {
        Ok(freed) => freed.map(|()| true),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("platform.lock");
        assert_eq!(holder(&path).unwrap(), None);
        let lock = take(&path).unwrap().unwrap();
        let held = Held { pid: Some(std::process::id()) };
        assert_eq!(take(&path).unwrap().unwrap_err(), held);
        assert_eq!(holder(&path).unwrap(), Some(held));
        drop(lock);
        assert_eq!(holder(&path).unwrap(), None);
        take(&path).unwrap().unwrap();
    }
}
