//! Places that were away, or that another process left out, get what they lack.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Member, Repository, place::Listed};
use crate::error::BackupError;

/// Objects on their way at a time.
const AT_ONCE: usize = 4;
/// So few are brought while nobody else writes; a place that lacks more is away until it has them.
const FEW: usize = 8;
const ROUNDS_MAX: usize = 10;
/// A listing takes no longer; and no longer while others wait to write.
const LIST_MAX: Duration = Duration::from_secs(300);
const LIST_ALONE_MAX: Duration = Duration::from_secs(10);

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
    from: BTreeSet<usize>,
}

/// Who answers, and what each of those lacks.
struct Compared {
    answering: BTreeSet<usize>,
    lacks: Vec<Lack>,
}

enum Copied {
    Brought(u64),
    /// The place does not take it.
    Refused(BackupError),
    /// Nobody gives it.
    Unreadable,
}

impl Member {
    /// All objects of clusters; what else lies there is not ours.
    async fn everything(&self) -> Result<Vec<Listed>, BackupError> {
        let place = self.place()?;
        let mut all = Vec::new();
        for cluster in place.folders("").await?.iter().filter(|name| name.parse::<u64>().is_ok()) {
            all.extend(place.list(cluster).await?);
        }
        Ok(all)
    }
}

impl Repository {
    /// Compares all places and brings each what only others have: what a manifest names before the manifest. A place
    /// that answers and lacks nothing is written to again; one that does not answer, or takes nothing, is away.
    ///
    /// # Errors
    /// If no place answers; what was brought stays.
    pub async fn catch_up(&self, stop: &CancellationToken) -> Result<CaughtUp, BackupError> {
        let mut brought = CaughtUp::default();
        if self.members.len() < 2 {
            return Ok(brought);
        }
        // those that take part in the comparison: who takes nothing is left out
        let mut of: BTreeSet<usize> = (0..self.members.len()).collect();
        let is_away = |number: &usize| self.members.get(*number).is_some_and(Member::is_away);
        // what is written meanwhile goes past a place that is away: a few rounds come near to the end
        for _ in 0..ROUNDS_MAX {
            let Compared { answering, lacks } = self.compare(&of, LIST_MAX).await?;
            for number in &answering {
                if lacks.iter().filter(|lack| lack.to == *number).count() > FEW {
                    self.leaves(*number, "it is being brought what it lacks".to_owned());
                }
            }
            let few = lacks.len() <= FEW;
            let refused = self.bring(lacks, &mut brought, stop).await?;
            of = &answering - &refused;
            let back: BTreeSet<usize> = of.iter().copied().filter(is_away).collect();
            if refused.is_empty() && few && (back.is_empty() || self.come_back(&of, &back, &mut brought, stop).await?) {
                break;
            }
        }
        // who could not leave before, because there was nobody else
        for number in (0..self.members.len()).filter(|number| !of.contains(number)) {
            self.leaves(number, "it takes nothing".to_owned());
        }
        Ok(brought)
    }

    /// Brings the last few objects while nobody writes, and lets those that were away take part again. `false`: they
    /// lack too much once more, or take nothing.
    async fn come_back(
        &self,
        of: &BTreeSet<usize>,
        back: &BTreeSet<usize>,
        brought: &mut CaughtUp,
        stop: &CancellationToken,
    ) -> Result<bool, BackupError> {
        let _alone = self.gate.write().await;
        let Compared { answering, lacks } = self.compare(of, LIST_ALONE_MAX).await?;
        if lacks.len() > FEW || !self.bring(lacks, brought, stop).await?.is_empty() {
            return Ok(false);
        }
        for number in back.intersection(&answering) {
            if let Some(member) = self.members.get(*number)
                && member.standing(|standing| standing.away.take()).is_some()
            {
                tracing::info!(repository = member.location.name(), "the repository has caught up");
            }
        }
        Ok(true)
    }

    async fn compare(&self, of: &BTreeSet<usize>, within: Duration) -> Result<Compared, BackupError> {
        let mut listings = BTreeMap::new();
        let mut failed = Vec::new();
        let asking = self.members.iter().enumerate().filter(|(number, _)| of.contains(number)).map(
            |(number, member)| async move {
                let listing = tokio::time::timeout(within, member.everything()).await;
                (number, listing.unwrap_or_else(|_| Err(member.silent(within))))
            },
        );
        for (number, listing) in futures::future::join_all(asking).await {
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
        for (object, (bytes, from)) in all {
            let without = listings.keys().copied().filter(|number| !from.contains(number));
            lacks.extend(without.map(|to| Lack { object: object.to_owned(), bytes, to, from: from.clone() }));
        }
        Ok(Compared { answering: listings.into_keys().collect(), lacks })
    }

    /// Copies them; the places that cannot be written to. A manifest of which an object is nowhere to be read is left out.
    async fn bring(
        &self,
        lacks: Vec<Lack>,
        brought: &mut CaughtUp,
        stop: &CancellationToken,
    ) -> Result<BTreeSet<usize>, BackupError> {
        let folder = |object: &str| object.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        let (manifests, others): (Vec<_>, Vec<_>) =
            lacks.into_iter().partition(|lack| lack.object.ends_with("/manifest.json"));
        let mut failed = BTreeSet::new();
        let mut unreadable: BTreeSet<String> = BTreeSet::new();
        for mut part in [others, manifests] {
            part.retain(|lack| !failed.contains(&lack.to) && !unreadable.contains(&folder(&lack.object)));
            let mut on_their_way = futures::stream::iter(part)
                .map(|lack| async move {
                    let copied = self.copy(&lack, stop).await;
                    (lack, copied)
                })
                .buffer_unordered(AT_ONCE);
            while let Some((lack, copied)) = on_their_way.next().await {
                match copied? {
                    Copied::Brought(bytes) => {
                        brought.objects += 1;
                        brought.bytes += bytes;
                    }
                    Copied::Refused(error) => {
                        failed.insert(lack.to);
                        self.leaves(lack.to, error.to_string());
                    }
                    Copied::Unreadable => drop(unreadable.insert(folder(&lack.object))),
                }
            }
        }
        Ok(failed)
    }

    async fn copy(&self, lack: &Lack, stop: &CancellationToken) -> Result<Copied, BackupError> {
        if stop.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        for from in lack.from.iter().filter_map(|number| self.members.get(*number)) {
            let got = async { from.place()?.get(&lack.object).await };
            let bytes = match got.await {
                Ok(bytes) => bytes,
                // removed in the meantime
                Err(error) if error.is_not_found() => return Ok(Copied::Brought(0)),
                Err(error) => {
                    tracing::warn!(repository = from.location.name(), %error, "another place is asked");
                    continue;
                }
            };
            let put = async {
                let Some(to) = self.members.get(lack.to) else { return Ok(()) };
                to.place()?.put(&lack.object, bytes).await
            };
            return Ok(match put.await {
                Ok(()) => Copied::Brought(lack.bytes),
                Err(error) => Copied::Refused(error),
            });
        }
        Ok(Copied::Unreadable)
    }
}
