//! What is remembered of proofs: `<system id>/proofs/<label>.<time>.json` of each that came out well, so that a listing says
//! what was proven when, and `<label>.<time>.failed.zst[.age]` of the others, sealed, because the reason may hold names.

use std::time::Duration;

use millrace_base::Micros;
use serde::{Deserialize, Serialize};

use crate::{error::BackupError, manifest, prove::Proof, repo::Repository, seal};

const FAILED: &str = "failed";

/// A backup that was restored and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub label: String,
    pub at: Micros,
}

/// A backup that was restored, or should have been, and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub label: String,
    pub at: Micros,
    pub why: String,
}

/// All that is remembered of a cluster's proofs, the newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proofs {
    pub proven: Vec<Proven>,
    /// Label, time and object of those that failed: [`why`] reads one.
    failed: Vec<(Proven, String)>,
}

impl Proofs {
    /// When a backup was last proven.
    #[must_use]
    pub fn proven_at(&self, label: &str) -> Option<Micros> {
        self.proven.iter().rfind(|proven| proven.label == label).map(|proven| proven.at)
    }

    /// When it last failed, if it was not proven since.
    #[must_use]
    pub fn failed_at(&self, label: &str) -> Option<Micros> {
        self.last_failed(label).map(|(failed, _)| failed.at)
    }

    fn last_failed(&self, label: &str) -> Option<&(Proven, String)> {
        let last = self.failed.iter().rfind(|(failed, _)| failed.label == label)?;
        self.proven_at(label).is_none_or(|proven| proven < last.0.at).then_some(last)
    }

    /// Whether a backup should be proven: if it never was, or not for `every`; and did not fail within `pause`.
    #[must_use]
    pub fn is_due(&self, label: &str, every: Option<Duration>, pause: Duration, now: Micros) -> bool {
        let is_old = |at: Micros, age: Duration| now.since(at) >= age;
        self.failed_at(label).is_none_or(|at| is_old(at, pause))
            && self.proven_at(label).is_none_or(|at| every.is_some_and(|every| is_old(at, every)))
    }
}

fn folder(system_id: u64) -> String {
    format!("{system_id}/proofs")
}

fn name(system_id: u64, proven: &Proven) -> String {
    format!("{}/{}.{}.json", folder(system_id), proven.label, proven.at.0)
}

/// What an object is about, and whether it is of a failure.
fn parse(name: &str) -> Option<(Proven, bool)> {
    let file = name.rsplit('/').next()?;
    let sealed = file.strip_suffix(".zst.age").or_else(|| file.strip_suffix(".zst"));
    let (file, failed) = match sealed {
        Some(file) => (file.strip_suffix(FAILED)?.strip_suffix('.')?, true),
        None => (file.strip_suffix(".json")?, false),
    };
    let (label, at) = file.rsplit_once('.')?;
    Some((Proven { label: label.to_owned(), at: Micros(at.parse().ok()?) }, failed))
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

/// Keeps the report of one that did not.
///
/// # Errors
/// If the repository cannot be written.
pub async fn keep_failure(repo: &Repository, system_id: u64, failure: &Failure) -> Result<(), BackupError> {
    let (place, Failure { label, at, .. }) = (folder(system_id), failure);
    let object = format!("{place}/{label}.{}.{FAILED}.{}", at.0, repo.sealing.extension());
    repo.create(&object, repo.sealing.seal(&manifest::to_document(failure)?)?).await
}

/// All that is remembered.
///
/// # Errors
/// If the repository cannot be read.
pub async fn list(repo: &Repository, system_id: u64) -> Result<Proofs, BackupError> {
    let mut all = Proofs::default();
    for listed in repo.list(&folder(system_id)).await? {
        match parse(&listed.name) {
            Some((failed, true)) => all.failed.push((failed, listed.name)),
            Some((proven, false)) => all.proven.push(proven),
            None => {}
        }
    }
    all.proven.sort_by_key(|proven| proven.at);
    all.failed.sort_by_key(|(failed, _)| failed.at);
    Ok(all)
}

/// Why a backup failed its last proof, if it was not proven since. Of a report that is damaged, or sealed for a key that is
/// not at hand, it is that.
///
/// # Errors
/// If the repository cannot be read.
pub async fn why(repo: &Repository, proofs: &Proofs, label: &str) -> Result<Option<Failure>, BackupError> {
    let Some((failed, object)) = proofs.last_failed(label) else { return Ok(None) };
    let read = |bytes: &[u8]| {
        let document = seal::unseal(object, bytes, &repo.keys)?;
        manifest::from_document::<Failure>(object, &document)
    };
    let got = repo.get_good(object, |bytes| read(bytes).map(drop)).await;
    match got.and_then(|bytes| read(&bytes)) {
        Ok(failure) => Ok(Some(failure)),
        Err(error @ BackupError::Repository { .. }) if !error.is_not_found() => Err(error),
        Err(error) => {
            let why = format!("its report cannot be read: {error}");
            Ok(Some(Failure { label: failed.label.clone(), at: failed.at, why }))
        }
    }
}

/// The newest report of one that came out well, which tells how long that restore took.
///
/// # Errors
/// If the repository cannot be read, or the report is damaged.
pub async fn newest(repo: &Repository, system_id: u64) -> Result<Option<Proof>, BackupError> {
    let Some(proven) = list(repo, system_id).await?.proven.pop() else { return Ok(None) };
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
    let all = list(repo, system_id).await?;
    let well = all.proven.into_iter().map(|proven| (name(system_id, &proven), proven.label));
    let failed = all.failed.into_iter().map(|(failed, object)| (object, failed.label));
    for (object, _) in well.chain(failed).filter(|(_, label)| !is_there(label)) {
        repo.delete(&object).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn of(label: &str, at: i64) -> Proven {
        Proven { label: label.into(), at: Micros(at) }
    }

    #[test]
    fn names_round_trip() {
        let proven = of("20261123T080910Z-k3x9", 1_795_401_607_000_000);
        assert_eq!(parse(&name(7, &proven)), Some((proven, false)));
        for sealed in ["zst", "zst.age"] {
            assert_eq!(parse(&format!("7/proofs/a.5.failed.{sealed}")), Some((of("a", 5), true)));
        }
        for strange in ["7/proofs/a.json", "7/proofs/a.b.json", "7/proofs/a.1.txt", "7/proofs/", "7/proofs/a.1.zst"] {
            assert_eq!(parse(strange), None, "{strange}");
        }
    }

    #[test]
    fn due_once_again_after_a_while_and_not_right_after_a_failure() {
        let (every, pause) = (Some(Duration::from_secs(24 * 3600)), Duration::from_secs(3600));
        let mut proofs = Proofs::default();
        let due = |proofs: &Proofs, label, hour| proofs.is_due(label, every, pause, Micros(hour * HOUR));
        assert!(due(&proofs, "a", 0));
        proofs.failed.push((of("a", 0), String::new()));
        assert_eq!(proofs.failed_at("a"), Some(Micros(0)));
        assert!(!due(&proofs, "a", 0) && due(&proofs, "a", 1) && due(&proofs, "b", 0));
        proofs.proven.push(of("a", HOUR));
        assert_eq!(proofs.failed_at("a"), None, "it was proven since");
        assert!(!due(&proofs, "a", 24) && due(&proofs, "a", 25) && due(&proofs, "b", 2));
        assert!(!proofs.is_due("a", None, pause, Micros(1_000 * HOUR)), "once is enough");
    }
}
