//! The data directory that every test server is a copy of, made once for each machine and user.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use millrace_base::Secret;
use millrace_pg::ServerSpec;
use rustix::fs::{FlockOperation, flock};

use crate::PASSWORD;

/// Raise when what the template holds changes.
const LAYOUT: u32 = 1;

/// Gives `spec` a data directory: a copy of the template, which is made first if it is not there.
///
/// # Panics
/// If it cannot be made: a test cannot go on.
pub(crate) async fn copy(spec: &ServerSpec) {
    let template = template_folder(spec);
    fs::create_dir_all(&template).expect("the template's folder");
    fs::set_permissions(&template, fs::Permissions::from_mode(0o755)).expect("the template's mode");

    let lock = File::create(template.join("lock")).expect("the template's lock");
    // blocks this runtime's thread for the seconds that another test makes the template
    flock(&lock, FlockOperation::LockExclusive).expect("the template's lock");
    let made = ServerSpec { folder: template.join("node"), ..spec.clone() };
    if !made.data_dir().exists() {
        made.initdb(&Secret::new(PASSWORD)).await.expect("initdb of the template");
    }
    drop(lock);
    duplicate(&made.data_dir(), &spec.data_dir());
}

fn template_folder(spec: &ServerSpec) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (LAYOUT, PASSWORD, spec.run_as.name(), spec.binaries.version()).hash(&mut hasher);
    let uid = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("millrace-testkit-{uid}-{:016x}", hasher.finish()))
}

fn duplicate(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to).status().expect("cp");
    assert!(done.success(), "the template cannot be copied");
}
