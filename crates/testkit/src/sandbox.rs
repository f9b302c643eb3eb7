//! A folder whose processes and files go away with the test, however it ends.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A temporary folder that other users can pass through.
///
/// A small shell process waits on a pipe from this one. When the pipe closes, by a drop, a panic
/// or a `SIGKILL` of the test, it ends all processes that work inside the folder and removes it.
#[derive(Debug)]
pub struct Sandbox {
    path: PathBuf,
    watchdog: Child,
}

impl Sandbox {
    /// A new, empty folder.
    ///
    /// # Panics
    /// If the machine does not allow it: a test cannot go on.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("millrace-test-").tempdir_in(root()).expect("a temporary folder");
        let path = folder.keep().canonicalize().expect("the temporary folder");
        let watchdog = Command::new("/bin/sh")
            .arg("-c")
            .arg(include_str!("watchdog.sh"))
            .arg("millrace-test-watchdog")
            .arg(&path)
            .arg(std::process::id().to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // it must outlive a runner that kills the whole group of a hung test
            .process_group(0)
            .spawn()
            .expect("the watchdog");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the folder's mode");
        Self { path, watchdog }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Memory if there is plenty: initdb and base backups sync every file, and tests wait for it.
fn root() -> PathBuf {
    const PLENTY_BYTES: u64 = 4 << 30;
    let memory = PathBuf::from("/dev/shm");
    match rustix::fs::statvfs(&memory) {
        Ok(free) if free.f_bavail.saturating_mul(free.f_frsize) >= PLENTY_BYTES => memory,
        _ => std::env::temp_dir(),
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        if let Err(error) = self.watchdog.wait() {
            tracing::error!(%error, "cannot wait for the watchdog of a sandbox");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_and_files_go_with_it() {
        let sandbox = Sandbox::new();
        let path = sandbox.path().to_owned();
        fs::create_dir(path.join("deep")).unwrap();
        let mut inside =
            Command::new("sleep").arg("600").current_dir(path.join("deep")).stdin(Stdio::null()).spawn().unwrap();
        drop(sandbox);
        assert!(!inside.wait().unwrap().success());
        assert!(!path.exists());
    }
}
