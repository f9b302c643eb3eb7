//! What of a data directory belongs into a backup (PostgreSQL manual, "Making a Base Backup Using the Low Level API";
//! `basebackup.c`).

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    error::BackupError,
    manifest::{Folder, Tablespace},
};

/// Where a restore keeps the log that it brings; within the data directory.
pub(crate) const RESTORE_WAL: &str = "millrace_restore_wal";
pub(crate) const CONTROL_FILE: &str = "global/pg_control";

/// Their content is of the running server only.
const EMPTIED: [&str; 8] =
    ["pg_wal", "pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];

const LEFT_OUT: [&str; 9] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "recovery.signal",
    "standby.signal",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
];

/// A file to back up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Below the data directory; tablespaces are below `pg_tblspc/<oid>`.
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) bytes: u64,
    /// Its pages carry a position and, where the server has them, a checksum.
    pub(crate) pages: Option<Pages>,
}

/// A file of a relation's main fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pages {
    /// 1 GiB each.
    pub(crate) number: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) folders: Vec<Folder>,
    pub(crate) files: Vec<Found>,
    pub(crate) tablespaces: Vec<Tablespace>,
}

/// A relation's file by its name: `<node>[_<fork>][.<number>]`.
#[derive(Debug, PartialEq, Eq)]
struct Relation<'a> {
    node: &'a str,
    fork: Option<&'a str>,
    number: u32,
}

fn relation(name: &str) -> Option<Relation<'_>> {
    let (stem, number) = match name.split_once('.') {
        Some((stem, number)) => (stem, number.parse().ok()?),
        None => (name, 0),
    };
    let (node, fork) = match stem.split_once('_') {
        Some((node, fork @ ("fsm" | "vm" | "init"))) => (node, Some(fork)),
        Some(_) => return None,
        None => (stem, None),
    };
    (!node.is_empty() && node.bytes().all(|byte| byte.is_ascii_digit())).then_some(Relation { node, fork, number })
}

/// A relation of a session's own: `t<backend>_<node>…`.
fn is_temporary(name: &str) -> bool {
    let rest = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    rest.is_some_and(|(backend, rest)| {
        !backend.is_empty() && backend.bytes().all(|byte| byte.is_ascii_digit()) && relation(rest).is_some()
    })
}

/// Whether relations lie in this folder.
fn holds_relations(folder: &str) -> bool {
    let parts: Vec<&str> = folder.split('/').collect();
    matches!(parts.as_slice(), ["global"] | ["base", _] | ["pg_tblspc", _, _, _])
}

fn is_left_out(folder: &str, name: &str) -> bool {
    name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || (folder.is_empty() && (LEFT_OUT.contains(&name) || name == RESTORE_WAL))
        || (holds_relations(folder) && is_temporary(name))
}

/// Which of a folder's names stay, and what they are. Pure.
fn choose<'a>(folder: &str, names: &[&'a str]) -> Vec<(&'a str, Option<Pages>)> {
    let relations = holds_relations(folder);
    let unlogged: HashSet<&str> = names
        .iter()
        .filter_map(|name| relation(name).filter(|found| relations && found.fork == Some("init")))
        .map(|found| found.node)
        .collect();
    let keep = |name: &&'a str| {
        if is_left_out(folder, name) {
            return None;
        }
        let found = relation(name).filter(|_| relations);
        match found {
            // its content does not survive a crash: it is made anew from the init fork
            Some(found) if found.fork != Some("init") && unlogged.contains(found.node) => None,
            Some(Relation { fork: None, number, .. }) => Some((*name, Some(Pages { number }))),
            _ => Some((*name, None)),
        }
    };
    names.iter().filter_map(keep).collect()
}

/// Walks the data directory of a running server. What vanishes meanwhile is left out.
pub(crate) fn scan(data: &Path) -> Result<Scan, BackupError> {
    let mut scan = Scan::default();
    let mut waiting = vec![String::new()];
    while let Some(folder) = waiting.pop() {
        let place = data.join(&folder);
        let Some(metadata) = there(fs::metadata(&place), "look at", &place)? else { continue };
        if !folder.is_empty() {
            scan.folders.push(Folder { path: folder.clone(), mode: metadata.permissions().mode() & 0o7777 });
        }
        if folder == "pg_wal" {
            let path = "pg_wal/archive_status".to_owned();
            scan.folders.push(Folder { path, mode: metadata.permissions().mode() & 0o7777 });
        }
        if EMPTIED.contains(&&*folder) {
            continue;
        }
        let Some(entries) = there(fs::read_dir(&place), "list", &place)? else { continue };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(BackupError::io("list", &place))?.file_name();
            let Ok(name) = name.into_string() else {
                return Err(BackupError::Unfit(format!("a name in {} is not UTF-8", place.display())));
            };
            names.push(name);
        }
        names.sort_unstable();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (name, pages) in choose(&folder, &names) {
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let place = data.join(&path);
            if folder == "pg_tblspc"
                && let Some(tablespace) = tablespace(&place, name)?
            {
                scan.tablespaces.push(tablespace);
            }
            // symbolic links are followed: what they lead to is part of the data
            let Some(metadata) = there(fs::metadata(&place), "look at", &place)? else { continue };
            if metadata.is_dir() {
                waiting.push(path);
            } else if metadata.is_file() {
                let mode = metadata.permissions().mode() & 0o7777;
                scan.files.push(Found { path, mode, bytes: metadata.len(), pages });
            }
        }
    }
    scan.folders.sort_by(|a, b| a.path.cmp(&b.path));
    scan.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scan)
}

/// `None` for one that lies in the data directory itself.
fn tablespace(place: &Path, name: &str) -> Result<Option<Tablespace>, BackupError> {
    let target: PathBuf = match fs::read_link(place) {
        Ok(target) => target,
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => return Ok(None),
        Err(error) => return Err(BackupError::io("look at", place)(error)),
    };
    let path = target
        .into_os_string()
        .into_string()
        .map_err(|_| BackupError::Unfit(format!("the place of tablespace {name} is not UTF-8")))?;
    Ok(name.parse().ok().map(|oid| Tablespace { oid, path }))
}

/// `None`: it has gone.
pub(crate) fn there<T>(found: io::Result<T>, doing: &'static str, place: &Path) -> Result<Option<T>, BackupError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BackupError::io(doing, place)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(folder: &str, names: &[&str]) -> Vec<String> {
        choose(folder, names).into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn what_stays_of_a_database() {
        let names = [
            "1259",
            "1259.1",
            "1259_fsm",
            "1259_vm",
            "16400",
            "16400.1",
            "16400_init",
            "16400_vm",
            "pg_filenode.map",
            "pg_internal.init",
            "pg_internal.init.77",
            "t3_16401",
            "t3_16401_fsm",
            "pgsql_tmp",
            "PG_VERSION",
        ];
        let expected = ["1259", "1259.1", "1259_fsm", "1259_vm", "16400_init", "pg_filenode.map", "PG_VERSION"];
        assert_eq!(kept("base/5", &names), expected);
        assert_eq!(kept("pg_tblspc/16402/PG_15_202209061/5", &names), expected);
        let pages: Vec<_> = choose("base/5", &["1259.2", "1259_vm"]).into_iter().map(|(_, pages)| pages).collect();
        assert_eq!(pages, [Some(Pages { number: 2 }), None]);
    }

    #[test]
    fn what_stays_of_the_top() {
        let names = ["PG_VERSION", "postmaster.pid", "standby.signal", "backup_label", "millrace.conf", "t3_16401"];
        assert_eq!(kept("", &names), ["PG_VERSION", "millrace.conf", "t3_16401"]);
        assert_eq!(kept("pg_xact", &["0000"]), ["0000"]);
    }
}
