//! The unprivileged user as which servers run, and what that user can reach.
//!
//! PostgreSQL refuses to run as root. When the platform itself is root, servers and PostgreSQL's
//! programs run as this user, without any supplementary group; otherwise as the platform's own user.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Uid},
    process::geteuid,
};

use crate::error::ServerError;

/// A user for servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    name: String,
    uid: u32,
    gid: u32,
    /// This process is root and must change user for them.
    switch: bool,
}

impl RunAs {
    /// Root: the user named, or `postgres`, or `nobody`. Others: themselves.
    ///
    /// # Errors
    /// If the named user does not exist, is root, or cannot be switched to.
    pub fn resolve(wanted: Option<&str>) -> Result<Self, ServerError> {
        let own = geteuid().as_raw();
        let named = wanted.map(|name| lookup(name).ok_or_else(|| ServerError::NoUser(name.to_owned()))).transpose()?;
        if own != 0 {
            return match named {
                Some(user) if user.uid != own => Err(ServerError::CannotSwitchUser { wanted: user.name, uid: own }),
                Some(user) => Ok(user),
                None => {
                    Ok(Self { name: name_of(own), uid: own, gid: rustix::process::getegid().as_raw(), switch: false })
                }
            };
        }
        let user = match named {
            Some(user) => user,
            None => lookup("postgres")
                .or_else(|| lookup("nobody"))
                .ok_or_else(|| ServerError::NoUser("postgres".to_owned()))?,
        };
        if user.uid == 0 {
            return Err(ServerError::Root);
        }
        Ok(Self { switch: true, ..user })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Makes `command` run as this user. When root, the standard library drops all
    /// supplementary groups together with the change of uid.
    pub fn apply(&self, command: &mut std::process::Command) {
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Gives `path` (not what is in it) to this user.
    ///
    /// # Errors
    /// If it may not be given away.
    pub fn own(&self, path: &Path) -> Result<(), ServerError> {
        if !self.switch {
            return Ok(());
        }
        rustix::fs::chown(path, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
            .map_err(|errno| ServerError::io("give away", path)(errno.into()))
    }

    /// Fails if an existing `path` belongs to someone else.
    ///
    /// # Errors
    /// [`ServerError::WrongOwner`].
    pub fn check_owner(&self, path: &Path) -> Result<(), ServerError> {
        let owner = fs::metadata(path).map_err(ServerError::io("look at", path))?.uid();
        if owner == self.uid {
            return Ok(());
        }
        Err(ServerError::WrongOwner { path: path.to_owned(), owner: name_of(owner), expected: self.name.clone() })
    }

    /// Whether this user can get to `path`, which need not exist yet: every existing parent must
    /// let it pass. Looks at modes only, not at access control lists.
    ///
    /// # Errors
    /// [`ServerError::Unreachable`] names the parent that blocks (for example a `/root` of mode 0700).
    pub fn check_reachable(&self, path: &Path) -> Result<(), ServerError> {
        let existing = deepest_existing(path).map_err(ServerError::io("look at", path))?;
        let folders: Vec<&Path> = existing.ancestors().collect();
        for folder in folders.into_iter().rev() {
            let metadata = fs::metadata(folder).map_err(ServerError::io("look at", folder))?;
            if !metadata.is_dir() || self.may_pass(&metadata) {
                continue;
            }
            return Err(ServerError::Unreachable { user: self.name.clone(), folder: folder.to_owned() });
        }
        Ok(())
    }

    fn may_pass(&self, folder: &fs::Metadata) -> bool {
        let shift = if folder.uid() == self.uid {
            6
        } else if folder.gid() == self.gid {
            3
        } else {
            0
        };
        (folder.mode() >> shift) & 1 == 1
    }
}

/// The existing part of `path`, without symbolic links.
fn deepest_existing(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
    }
    Ok(PathBuf::from("/"))
}

/// One line of `/etc/passwd`: `name:x:uid:gid:…`.
fn lookup(name: &str) -> Option<RunAs> {
    users()?.into_iter().find(|user| user.name == name)
}

fn name_of(uid: u32) -> String {
    let known = users().and_then(|users| users.into_iter().find(|user| user.uid == uid));
    known.map_or_else(|| format!("uid {uid}"), |user| user.name)
}

fn users() -> Option<Vec<RunAs>> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    Some(
        text.lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?.to_owned();
                let uid = fields.nth(1)?.parse().ok()?;
                let gid = fields.next()?.parse().ok()?;
                Some(RunAs { name, uid, gid, switch: false })
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn nobody() -> RunAs {
        lookup("nobody").unwrap()
    }

    #[test]
    fn the_blocking_parent_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().canonicalize().unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        nobody().check_reachable(&closed.join("platform/nodes/a")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        match nobody().check_reachable(&closed.join("platform/nodes/a")) {
            Err(ServerError::Unreachable { folder, .. }) => assert_eq!(folder, closed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_user_and_root_are_refused() {
        assert!(matches!(RunAs::resolve(Some("no such user")), Err(ServerError::NoUser(_))));
        if geteuid().is_root() {
            assert!(matches!(RunAs::resolve(Some("root")), Err(ServerError::Root)));
        }
        assert_ne!(RunAs::resolve(None).unwrap().uid(), 0);
    }
}
