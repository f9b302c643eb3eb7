//! What is remembered of proofs: `<system id>/proofs/<label>.<time>.json`, so that a listing says what was proven when.

use millrace_base::Micros;

use crate::{error::BackupError, manifest, prove::Proof, repo::Repository};

/// A backup that was restored and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub label: String,
    pub at: Micros,
}

fn folder(system_id: u64) -> String {
    format!("{system_id}/proofs")
}

fn name(system_id: u64, proven: &Proven) -> String {
    format!("{}/{}.{}.json", folder(system_id), proven.label, proven.at.0)
}

fn parse(name: &str) -> Option<Proven> {
    let (label, at) = name.rsplit('/').next()?.strip_suffix(".json")?.rsplit_once('.')?;
    Some(Proven { label: label.to_owned(), at: Micros(at.parse().ok()?) })
}

/// Keeps the report of one that came out well at `at`.
///
/// # Errors
/// If the repository cannot be written.
pub async fn keep(repo: &Repository, system_id: u64, proof: &Proof, at: Micros) -> Result<(), BackupError> {
    let label = proof.plan.backups.last().cloned().unwrap_or_default();
    let object = name(system_id, &Proven { label, at });
    // it is not sealed: no names of tables in it
    let public = Proof { tables_left_out: Vec::new(), ..proof.clone() };
    repo.create(&object, manifest::to_document(&public)?).await
}

/// All that are remembered, the newest last.
///
/// # Errors
/// If the repository cannot be read.
pub async fn list(repo: &Repository, system_id: u64) -> Result<Vec<Proven>, BackupError> {
    let listed = repo.list(&folder(system_id)).await?;
    let mut all: Vec<Proven> = listed.iter().filter_map(|listed| parse(&listed.name)).collect();
    all.sort_by_key(|proven| proven.at);
    Ok(all)
}

/// The newest report, which tells how long that restore took.
///
/// # Errors
/// If the repository cannot be read, or the report is damaged.
pub async fn newest(repo: &Repository, system_id: u64) -> Result<Option<Proof>, BackupError> {
    let Some(proven) = list(repo, system_id).await?.pop() else { return Ok(None) };
    let object = name(system_id, &proven);
    let read = |bytes: &[u8]| manifest::from_document::<Proof>(&object, bytes);
    Ok(Some(read(&repo.get_good(&object, |bytes| read(bytes).map(drop)).await?)?))
}

/// Removes those of backups that `is_there` says are no more.
pub(crate) async fn forget(
    repo: &Repository,
    system_id: u64,
    is_there: impl Fn(&str) -> bool,
) -> Result<(), BackupError> {
    for proven in list(repo, system_id).await?.into_iter().filter(|proven| !is_there(&proven.label)) {
        repo.delete(&name(system_id, &proven)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let proven = Proven { label: "20261123T080910Z-k3x9".into(), at: Micros(1_795_401_607_000_000) };
        assert_eq!(parse(&name(7, &proven)), Some(proven));
        for strange in ["7/proofs/a.json", "7/proofs/a.b.json", "7/proofs/a.1.txt", "7/proofs/"] {
            assert_eq!(parse(strange), None, "{strange}");
        }
    }
}
