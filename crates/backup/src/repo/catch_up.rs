//! Places that were away, or that another process left out, get what they lack.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::Repository;
use crate::error::BackupError;

/// Objects on their way at a time.
const AT_ONCE: usize = 4;
/// With the gate open so few may be left; the rest is brought while nobody writes.
const FEW: usize = 8;
const ROUNDS_MAX: usize = 10;

/// What was brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaughtUp {
    pub objects: usize,
    pub bytes: u64,
}

/// One object that a place lacks.
struct Lack {
    object: String,
    bytes: u64,
    to: usize,
    from: usize,
}

impl Repository {
    /// Compares all places and brings each what only others have: what a manifest names before the manifest. A place
    /// that answers and lacks nothing is written to again; one that does not answer, or takes nothing, is away.
    ///
    /// # Errors
    /// If no place answers, or an object cannot be brought; what was brought stays.
    pub async fn catch_up(&self, stop: &CancellationToken) -> Result<CaughtUp, BackupError> {
        let mut brought = CaughtUp::default();
        if self.members.len() < 2 {
            return Ok(brought);
        }
        // what is written meanwhile goes past a place that is away: a few rounds come near to the end
        for _ in 0..ROUNDS_MAX {
            let (_, lacks) = self.compare().await?;
            let few = lacks.len() <= FEW;
            if !few || self.away().is_empty() {
                self.bring(lacks, &mut brought, stop).await?;
            }
            if few {
                break;
            }
        }
        if self.away().is_empty() {
            return Ok(brought);
        }
        let _alone = self.gate.write().await;
        let (mut whole, lacks) = self.compare().await?;
        let failed = self.bring(lacks, &mut brought, stop).await?;
        whole.retain(|number| !failed.contains(number));
        for (_, member) in self.members.iter().enumerate().filter(|(number, _)| whole.contains(number)) {
            if member.standing(|standing| standing.away.take()).is_some() {
                tracing::info!(repository = member.location.name(), "the repository has caught up");
            }
        }
        // who took the place of one that is back is let go only now
        failed.into_iter().for_each(|number| self.leaves(number, "it cannot be written to".to_owned()));
        Ok(brought)
    }

    /// Which places answer, and what each of those lacks.
    async fn compare(&self) -> Result<(BTreeSet<usize>, Vec<Lack>), BackupError> {
        let mut listings = BTreeMap::new();
        let mut failed = Vec::new();
        let asking = self.members.iter().map(|member| async { member.place()?.list("").await });
        for (number, listing) in futures::future::join_all(asking).await.into_iter().enumerate() {
            match listing {
                Ok(listing) => drop(listings.insert(number, listing)),
                Err(error) => failed.push((number, error)),
            }
        }
        if listings.is_empty()
            && let Some((_, error)) = failed.pop()
        {
            return Err(error);
        }
        failed.into_iter().for_each(|(number, error)| self.leaves(number, error.to_string()));
        let mut all: BTreeMap<&str, (u64, BTreeSet<usize>)> = BTreeMap::new();
        for (number, listing) in &listings {
            for listed in listing {
                all.entry(&listed.name).or_insert((listed.bytes, BTreeSet::new())).1.insert(*number);
            }
        }
        let mut lacks = Vec::new();
        for (object, (bytes, there)) in all {
            let Some(from) = there.first().copied() else { continue };
            let without = listings.keys().copied().filter(|number| !there.contains(number));
            lacks.extend(without.map(|to| Lack { object: object.to_owned(), bytes, to, from }));
        }
        Ok((listings.into_keys().collect(), lacks))
    }

    /// Copies them; the places that cannot be written to.
    async fn bring(
        &self,
        lacks: Vec<Lack>,
        brought: &mut CaughtUp,
        stop: &CancellationToken,
    ) -> Result<BTreeSet<usize>, BackupError> {
        let (manifests, others): (Vec<_>, Vec<_>) =
            lacks.into_iter().partition(|lack| lack.object.ends_with("/manifest.json"));
        let mut failed = BTreeSet::new();
        for mut part in [others, manifests] {
            part.retain(|lack| !failed.contains(&lack.to));
            let mut on_their_way = futures::stream::iter(part)
                .map(|lack| async move { (lack.to, self.copy(&lack, stop).await) })
                .buffer_unordered(AT_ONCE);
            while let Some((to, copied)) = on_their_way.next().await {
                match copied? {
                    Ok(bytes) => {
                        brought.objects += 1;
                        brought.bytes += bytes;
                    }
                    Err(error) => {
                        failed.insert(to);
                        self.leaves(to, error.to_string());
                    }
                }
            }
        }
        Ok(failed)
    }

    /// The inner error is of the place that it is brought to.
    async fn copy(&self, lack: &Lack, stop: &CancellationToken) -> Result<Result<u64, BackupError>, BackupError> {
        let (Some(from), Some(to)) = (self.members.get(lack.from), self.members.get(lack.to)) else {
            return Ok(Ok(0));
        };
        if stop.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let bytes = match from.place()?.get(&lack.object).await {
            Ok(bytes) => bytes,
            // removed in the meantime
            Err(error) if error.is_not_found() => return Ok(Ok(0)),
            Err(error) => return Err(error),
        };
        let to = match to.place() {
            Ok(to) => to,
            Err(error) => return Ok(Err(error)),
        };
        Ok(to.put(&lack.object, bytes).await.map(|()| lack.bytes))
    }
}
