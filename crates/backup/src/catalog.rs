//! The backups in a repository: listing, reading, removing.

use millrace_base::Micros;
use serde::de::DeserializeOwned;

use crate::{
    error::BackupError,
    manifest::{self, FileList, Manifest},
    repo::Repository,
    seal,
};

/// All of a cluster's backups.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// By label, so by time.
    pub backups: Vec<Manifest>,
    /// Manifests that cannot be read: object and reason.
    pub damaged: Vec<(String, String)>,
    /// Folders without a manifest, with the time of their newest object: a run that failed, or one that goes on.
    pub unfinished: Vec<(String, Micros)>,
}

pub(crate) fn folder(system_id: u64, label: &str) -> String {
    format!("{system_id}/backups/{label}")
}

/// Lists a cluster's backups.
///
/// # Errors
/// If the repository cannot be read. A damaged manifest is told in the result.
pub async fn list(repo: &Repository, system_id: u64) -> Result<Catalog, BackupError> {
    let of = |manifest: &Manifest| (manifest.label.clone(), manifest.system_id);
    let (backups, damaged, unfinished) = shelf(repo, system_id, &format!("{system_id}/backups"), of).await?;
    Ok(Catalog { backups, damaged, unfinished })
}

/// What is there, what is damaged (object and reason), what has no manifest (label and the time of its newest object).
type Shelf<T> = (Vec<T>, Vec<(String, String)>, Vec<(String, Micros)>);

/// The manifests of a folder that has a folder each; `of` says what one is of: its label and cluster.
pub(crate) async fn shelf<T: DeserializeOwned>(
    repo: &Repository,
    system_id: u64,
    shelf: &str,
    of: impl Fn(&T) -> (String, u64),
) -> Result<Shelf<T>, BackupError> {
    let (mut found, mut damaged, mut unfinished) = Shelf::default();
    for label in repo.folders(shelf).await? {
        let place = format!("{shelf}/{label}");
        let object = format!("{place}/manifest.json");
        let read = |bytes: &[u8]| manifest::from_document::<T>(&object, bytes);
        let bytes = match repo.get_good(&object, |bytes| read(bytes).map(drop)).await {
            Ok(bytes) => bytes,
            Err(error @ (BackupError::Damaged { .. } | BackupError::LaterFormat { .. })) => {
                tracing::error!(%error, "a backup's manifest cannot be read");
                damaged.push((object, error.to_string()));
                continue;
            }
            Err(error) if error.is_not_found() => {
                let newest = repo.list(&place).await?.into_iter().map(|listed| listed.written).max();
                unfinished.extend(newest.map(|newest| (label, newest)));
                continue;
            }
            Err(error) => return Err(error),
        };
        match read(&bytes)? {
            manifest if of(&manifest) == (label, system_id) => found.push(manifest),
            _ => damaged.push((object, "it is of another backup".to_owned())),
        }
    }
    Ok((found, damaged, unfinished))
}

/// The sealed list of a backup's files.
pub(crate) async fn files(repo: &Repository, backup: &Manifest) -> Result<FileList, BackupError> {
    let object = backup.file_list()?;
    let name = format!("{}/{}", folder(backup.system_id, &backup.label), object.name);
    let sealed = repo.get_whole(&name, &object.blake3).await?;
    let document = seal::unseal(&name, &sealed, &repo.keys)?;
    manifest::from_document(&name, &document)
}

/// Removes a backup; its manifest goes first, so that a half removed one counts for nothing.
pub(crate) async fn remove(repo: &Repository, system_id: u64, label: &str) -> Result<(), BackupError> {
    clear(repo, &folder(system_id, label)).await
}

pub(crate) async fn clear(repo: &Repository, place: &str) -> Result<(), BackupError> {
    repo.delete(&format!("{place}/manifest.json")).await?;
    for listed in repo.list(place).await? {
        repo.delete(&listed.name).await?;
    }
    Ok(())
}

/// A backup and those that it builds on, the full one first. Pure.
pub(crate) fn chain<'a>(backups: &'a [Manifest], label: &str) -> Result<Vec<&'a Manifest>, BackupError> {
    let mut chain: Vec<&Manifest> = Vec::new();
    let mut next = Some(label);
    while let Some(label) = next {
        let found = backups.iter().find(|backup| backup.label == label);
        let found = found.filter(|found| chain.iter().all(|other| other.label != found.label));
        let found = found.ok_or_else(|| BackupError::NoSuchBackup(label.to_owned()))?;
        next = found.parent.as_deref();
        chain.push(found);
    }
    chain.reverse();
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::backup;

    #[test]
    fn chains() {
        let mut all = vec![backup("a", 1, 1, 2), backup("b", 1, 3, 4), backup("c", 1, 5, 6)];
        all[1].parent = Some("a".to_owned());
        all[2].parent = Some("b".to_owned());
        let labels = |label| -> Result<Vec<String>, BackupError> {
            Ok(chain(&all, label)?.into_iter().map(|backup| backup.label.clone()).collect())
        };
        assert_eq!(labels("c").unwrap(), ["a", "b", "c"]);
        assert_eq!(labels("a").unwrap(), ["a"]);
        assert!(matches!(chain(&all[1..], "c"), Err(BackupError::NoSuchBackup(label)) if label == "a"));
        all[0].parent = Some("c".to_owned());
        assert!(chain(&all, "c").is_err(), "a ring is no chain");
    }
}
