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

    /// Puts a file system on `folder`, which is made: xfs, whose files can share blocks. It goes away with the sandbox.
    ///
    /// # Errors
    /// Why this machine, or who runs this, cannot have it: only root may mount.
    ///
    /// # Panics
    /// If the folder is not within the sandbox, or there is no mkfs.xfs.
    pub fn mount_xfs(&self, folder: &Path, megabytes: u64) -> Result<(), String> {
        assert!(folder.starts_with(&self.path), "{} is not in the sandbox", folder.display());
        fs::create_dir_all(folder).expect("the folder");
        if !rustix::process::geteuid().is_root() {
            return Err("only root may mount file systems".to_owned());
        }
        let image = self.path.join("xfs.img");
        fs::File::create(&image).and_then(|file| file.set_len(megabytes << 20)).expect("the image");
        run("mkfs.xfs", &["-q".as_ref(), "-m".as_ref(), "reflink=1".as_ref(), &image])
            .expect("`make setup` installs it");
        run("mount", &["-o".as_ref(), "loop".as_ref(), &image, folder])?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("the folder's mode");
        Ok(())
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {}", said.trim())) }
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

    #[test]
    fn a_file_system_goes_with_it() {
        let sandbox = Sandbox::new();
        let (folder, path) = (sandbox.path().join("disk"), sandbox.path().to_owned());
        if let Err(why) = sandbox.mount_xfs(&folder, 300) {
            #[expect(clippy::print_stdout, reason = "a test that tests nothing says so")]
            {
                println!("not run: {why}");
            }
            return;
        }
        fs::write(folder.join("file"), "x").unwrap();
        let mounted = || fs::read_to_string("/proc/mounts").unwrap().contains(folder.to_str().unwrap());
        assert!(mounted());
        drop(sandbox);
        assert!(!mounted() && !path.exists());
    }
}
