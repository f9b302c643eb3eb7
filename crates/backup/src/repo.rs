//! Where backups and log are kept: one or several folders or buckets of S3, each with everything.
//!
//! An object appears whole or not at all, and once this crate has written it, it is durable. Objects hold nothing
//! that another place would have to explain: see the crate's page for the layout.
//!
//! Of several places each is written to at the same time. One that fails, or keeps the others waiting, is *away* from
//! then on for whoever noticed: nothing is written there, so that no manifest appears without what it names, until
//! [`Repository::catch_up`] has brought it what it lacks. What is written is in at least one place. A listing is of
//! all places that answer, and what one lacks or has damaged is read from another: objects never change.

mod catch_up;
mod place;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::RwLock, time::Instant};

pub use catch_up::CaughtUp;
pub(crate) use place::Listed;
use place::Place;
pub use place::{AzureLocation, GoogleLocation, Location, S3Location};

use crate::{
    error::BackupError,
    seal::{Keys, Sealing},
};

/// The slowest of several places may take so much longer than the first, and a second more for each so many bytes.
const PATIENCE: Duration = Duration::from_secs(20);
const BYTES_A_SECOND: usize = 256 << 10;
/// As long for a listing.
const PATIENCE_LISTING: Duration = Duration::from_secs(120);
/// Of several places one is asked for an object no longer.
const READ_MAX: Duration = Duration::from_secs(300);

/// An open repository; cheap to clone. Clones share what is known of its places.
#[derive(Clone)]
pub struct Repository {
    members: Arc<[Member]>,
    /// Held by who writes, and alone by who makes a place present again.
    gate: Arc<RwLock<()>>,
    name: String,
    pub(crate) sealing: Sealing,
    pub(crate) keys: Keys,
}

/// One of its places.
struct Member {
    location: Location,
    state: Mutex<Standing>,
}

#[derive(Debug, Clone, Default)]
struct Standing {
    place: Option<Place>,
    away: Option<String>,
}

/// A place that nothing is written to for the time being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    pub repository: String,
    pub why: String,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("name", &self.name).field("sealing", &self.sealing).finish_non_exhaustive()
    }
}

impl Member {
    fn standing<T>(&self, with: impl FnOnce(&mut Standing) -> T) -> T {
        // a holder that panicked left nothing half done
        with(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn is_away(&self) -> bool {
        self.standing(|standing| standing.away.is_some())
    }

    /// The open place. One that could not be opened at first is tried again.
    fn place(&self) -> Result<Place, BackupError> {
        if let Some(place) = self.standing(|standing| standing.place.clone()) {
            return Ok(place);
        }
        let place = Place::open(&self.location)?;
        self.standing(|standing| standing.place = Some(place.clone()));
        Ok(place)
    }

    fn silent(&self, after: Duration) -> BackupError {
        let reason = format!("has not answered for {} s", after.as_secs());
        BackupError::BadRepository { repository: self.location.name(), reason }
    }

    fn leaves(&self, why: String) {
        let before = self.standing(|standing| standing.away.replace(why.clone()));
        if before.is_none() {
            tracing::warn!(repository = self.location.name(), why, "nothing is written there until it answers");
        }
    }
}

/// What each member made of a request: those that answered, and why others did not.
struct Answers<T> {
    done: Vec<(usize, T)>,
    failed: Vec<(usize, BackupError)>,
}

impl Repository {
    /// Opens it. `sealing` is for what is written; `keys` are for what is read, and may be empty where only full
    /// backups and log are written.
    ///
    /// # Errors
    /// If the folder cannot be made or the bucket's description is not usable. A bucket is not asked yet.
    pub fn open(location: &Location, sealing: Sealing, keys: Keys) -> Result<Self, BackupError> {
        Self::open_all(std::slice::from_ref(location), sealing, keys)
    }

    /// The same with several places; those that cannot be opened are away.
    ///
    /// # Errors
    /// If none can be opened.
    pub fn open_all(locations: &[Location], sealing: Sealing, keys: Keys) -> Result<Self, BackupError> {
        let members: Arc<[Member]> =
            locations.iter().map(|location| Member { location: location.clone(), state: Mutex::default() }).collect();
        let mut failed = Vec::new();
        for member in members.iter() {
            if let Err(error) = member.place() {
                failed.push((member, error));
            }
        }
        if failed.len() == members.len() {
            let none = BackupError::BadRepository { repository: String::new(), reason: "there is none".to_owned() };
            return Err(failed.into_iter().next().map_or(none, |(_, error)| error));
        }
        failed.into_iter().for_each(|(member, error)| member.leaves(error.to_string()));
        let names: Vec<String> = locations.iter().map(Location::name).collect();
        Ok(Self { members, gate: Arc::default(), name: names.join(" and "), sealing, keys })
    }

    /// For messages: all its places.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Each of its places by itself, as if there were no other; with why one cannot be opened.
    #[must_use]
    pub fn alone(&self) -> Vec<(String, Result<Self, BackupError>)> {
        let alone = |member: &Member| {
            let opened = Self::open(&member.location, self.sealing.clone(), self.keys.clone());
            (member.location.name(), opened)
        };
        self.members.iter().map(alone).collect()
    }

    /// Places that nothing is written to for the time being.
    #[must_use]
    pub fn away(&self) -> Vec<Away> {
        let away = |member: &Member| {
            let why = member.standing(|standing| standing.away.clone())?;
            Some(Away { repository: member.location.name(), why })
        };
        self.members.iter().filter_map(away).collect()
    }

    /// Asks all members that are not away at the same time. Once one has answered, those that fail or take longer than it
    /// and `patience` are away; as long as none has, nobody is.
    async fn all<T, F>(&self, patience: Duration, ask: impl Fn(Place) -> F) -> Result<Answers<T>, BackupError>
    where
        F: Future<Output = Result<T, BackupError>>,
    {
        let present = || self.members.iter().enumerate().filter(|(_, member)| !member.is_away());
        let mut asked: FuturesUnordered<_> = present()
            .map(|(number, member)| {
                let asking = member.place().map(&ask);
                async move {
                    match asking {
                        Ok(asking) => (number, asking.await),
                        Err(error) => (number, Err(error)),
                    }
                }
            })
            .collect();
        let mut waiting: Vec<usize> = present().map(|(number, _)| number).collect();
        let mut answers = Answers { done: Vec::new(), failed: Vec::new() };
        let mut until = None;
        loop {
            let next = match until {
                None => asked.next().await,
                Some(until) => tokio::time::timeout_at(until, asked.next()).await.unwrap_or(None),
            };
            let Some((number, answer)) = next else { break };
            waiting.retain(|other| *other != number);
            until.get_or_insert_with(|| Instant::now() + patience);
            match answer {
                Ok(answer) => answers.done.push((number, answer)),
                Err(error) => answers.failed.push((number, error)),
            }
        }
        if answers.done.is_empty() {
            let none = || BackupError::BadRepository { repository: self.name.clone(), reason: "is away".to_owned() };
            // what one of several lacks says less than why another does not answer
            let told = answers.failed.iter().position(|(_, error)| !error.is_not_found()).unwrap_or(0);
            return Err(if told < answers.failed.len() { answers.failed.swap_remove(told).1 } else { none() });
        }
        for number in waiting {
            self.leaves(number, format!("it has not answered for {} s", patience.as_secs()));
        }
        Ok(answers)
    }

    /// The last one that is present stays: there would be none to ask.
    fn leaves(&self, number: usize, why: String) {
        let other = |(n, member): (usize, &Member)| n != number && !member.is_away();
        if let Some(member) = self.members.get(number)
            && self.members.iter().enumerate().any(other)
        {
            member.leaves(why);
        }
    }

    /// Something is changed in all places; it stands once one has it.
    async fn change(
        &self,
        bytes: usize,
        ask: impl Fn(Place) -> BoxFuture<'static, Result<(), BackupError>> + Send,
    ) -> Result<(), BackupError> {
        let _writing = self.gate.read().await;
        let patience = PATIENCE + Duration::from_secs(u64::try_from(bytes / BYTES_A_SECOND).unwrap_or_default());
        let mut answers = self.all(patience, ask).await?;
        if let Some(at) = answers.failed.iter().position(|(_, error)| error.already_exists()) {
            return Err(answers.failed.swap_remove(at).1);
        }
        answers.failed.into_iter().for_each(|(number, error)| self.leaves(number, error.to_string()));
        Ok(())
    }

    /// Writes an object that is not there yet. Returns once it is durable. One that is there with the same content is fine.
    pub(crate) async fn create(&self, object: &str, bytes: Vec<u8>) -> Result<(), BackupError> {
        let (object, bytes) = (Arc::<str>::from(object), Bytes::from(bytes));
        self.change(bytes.len(), |place| {
            let (object, bytes) = (object.clone(), bytes.clone());
            Box::pin(async move { place.create(&object, &bytes).await })
        })
        .await
    }

    /// Writes an object whose name tells its content: writing it again changes nothing.
    pub(crate) async fn put(&self, object: &str, bytes: Bytes) -> Result<(), BackupError> {
        let object = Arc::<str>::from(object);
        self.change(bytes.len(), |place| {
            let (object, bytes) = (object.clone(), bytes.clone());
            Box::pin(async move { place.put(&object, bytes).await })
        })
        .await
    }

    /// A second object like one that is there, made by each place by itself.
    pub(crate) async fn duplicate(&self, from: &str, to: &str, bytes: u64) -> Result<(), BackupError> {
        let (from, to) = (Arc::<str>::from(from), Arc::<str>::from(to));
        self.change(usize::try_from(bytes).unwrap_or(usize::MAX), |place| {
            let (from, to) = (from.clone(), to.clone());
            Box::pin(async move { place.copy(&from, &to).await })
        })
        .await
    }

    /// That it is not there is no error.
    pub(crate) async fn delete(&self, object: &str) -> Result<(), BackupError> {
        let object = Arc::<str>::from(object);
        self.change(0, |place| {
            let object = object.clone();
            Box::pin(async move { place.delete(&object).await })
        })
        .await
    }

    /// From the first place that has it.
    pub(crate) async fn get(&self, object: &str) -> Result<Bytes, BackupError> {
        self.first(object, |bytes| std::future::ready(Ok(bytes))).await
    }

    /// From the first place where `check` has no objection to it.
    pub(crate) async fn get_good(
        &self,
        object: &str,
        check: impl Fn(&[u8]) -> Result<(), BackupError>,
    ) -> Result<Bytes, BackupError> {
        self.first(object, |bytes| std::future::ready(check(&bytes).map(|()| bytes))).await
    }

    /// From the first place where the BLAKE3 checksum of its stored bytes begins like this.
    pub(crate) async fn get_whole(&self, object: &str, hash: &str) -> Result<Bytes, BackupError> {
        self.first(object, |bytes: Bytes| async move {
            let (object, hash) = (object.to_owned(), hash.to_owned());
            crate::blocking(move || {
                if blake3::hash(&bytes).to_hex().starts_with(&hash) {
                    return Ok(bytes);
                }
                Err(BackupError::damaged(object, "its checksum is wrong"))
            })
            .await
        })
        .await
    }

    async fn first<F>(&self, object: &str, good: impl Fn(Bytes) -> F) -> Result<Bytes, BackupError>
    where
        F: Future<Output = Result<Bytes, BackupError>>,
    {
        let mut first: Option<BackupError> = None;
        let mut silent = Vec::new();
        // those that are away come last: they may have it all the same
        let mut order: Vec<(usize, &Member)> = self.members.iter().enumerate().collect();
        order.sort_by_key(|(_, member)| member.is_away());
        for (number, member) in order {
            let got = async { good(member.place()?.get(object).await?).await };
            let got = match self.members.len() {
                1 => got.await,
                _ => tokio::time::timeout(READ_MAX, got).await.unwrap_or_else(|_| Err(member.silent(READ_MAX))),
            };
            let error = match got {
                Ok(bytes) => {
                    silent.into_iter().for_each(|(number, why)| self.leaves(number, why));
                    return Ok(bytes);
                }
                Err(error) => error,
            };
            match &error {
                error if error.is_not_found() => {}
                BackupError::Repository { .. } | BackupError::BadRepository { .. } | BackupError::Io { .. } => {
                    silent.push((number, error.to_string()));
                }
                error if self.members.len() > 1 => {
                    tracing::warn!(repository = member.location.name(), %error, "another place is asked");
                }
                _ => {}
            }
            // those that are present lack it: why one that is away does not answer is known
            if first.is_none() || first.as_ref().is_some_and(BackupError::is_not_found) && !member.is_away() {
                first = Some(error);
            }
        }
        Err(first.unwrap_or_else(|| BackupError::BadRepository {
            repository: self.name.clone(),
            reason: "has no places".to_owned(),
        }))
    }

    /// All objects below a folder, by name.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Listed>, BackupError> {
        Ok(united(self.seen(|place| async move { place.list(folder).await }).await?))
    }

    /// Those below a folder whose name there (of the file or of the folder in it) begins with `from`, with `until`, or
    /// with what comes between. A bucket is listed from the one on, and no further than the other.
    pub(crate) async fn list_between(&self, folder: &str, from: &str, until: &str) -> Result<Vec<Listed>, BackupError> {
        Ok(united(self.seen(|place| async move { place.list_between(folder, from, until).await }).await?))
    }

    /// The names of the folders right below one.
    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>, BackupError> {
        let mut all: Vec<String> =
            self.seen(|place| async move { place.folders(folder).await }).await?.into_iter().flatten().collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// What all places that answer say, in their order.
    async fn seen<T, F>(&self, ask: impl Fn(Place) -> F) -> Result<Vec<T>, BackupError>
    where
        F: Future<Output = Result<T, BackupError>>,
    {
        let mut answers = self.all(PATIENCE_LISTING, ask).await?;
        answers.failed.into_iter().for_each(|(number, error)| self.leaves(number, error.to_string()));
        answers.done.sort_by_key(|(number, _)| *number);
        Ok(answers.done.into_iter().map(|(_, answer)| answer).collect())
    }

    /// The clusters that have something here, by their system identifiers.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub async fn clusters(&self) -> Result<Vec<u64>, BackupError> {
        Ok(self.folders("").await?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

/// Each object once, by name.
fn united(listings: Vec<Vec<Listed>>) -> Vec<Listed> {
    let mut all = BTreeMap::new();
    for listed in listings.into_iter().flatten() {
        all.entry(listed.name.clone()).or_insert(listed);
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests;
