//! What a backup that did not end has left, and what of it the next one takes over.
//!
//! While a backup is made, the parts in its finished packs are noted beside them: `begun-<number>` lists those since the note
//! before. A later backup of the same cluster reads every file again, and where a part is what a noted one was, by its
//! length and BLAKE3, that pack is copied within the repository instead of being compressed, encrypted and sent once more.
//! So it does not matter what has changed since, which server the parts are of, or what they build on.
//!
//! Invariants: nothing is taken from a pack that is not there in full length, or that is sealed for others than what is
//! written now; a note that cannot be read is as good as none. The run that left them may go on: its objects are only read.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    catalog::folder,
    error::BackupError,
    manifest::{self, FORMAT, Object, Piece},
    repo::Repository,
    seal::{self, Sealing},
};

/// A part that is less than this share of its pack does not bring the pack along.
const SHARE: u64 = 16;
/// Smaller packs are made anew.
const CONTENT_MIN: u64 = 1 << 20;
const NOTE: &str = "begun-";

/// Finished packs of a backup that goes on: a note's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    pub(crate) format: u32,
    /// Public keys that the packs are sealed for; none: they are not encrypted.
    pub(crate) recipients: Vec<String>,
    pub(crate) packs: Vec<NotedPack>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotedPack {
    pub(crate) object: Object,
    pub(crate) parts: Vec<Part>,
}

/// A part of a file, in its pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
    #[serde(default)]
    pub(crate) steps: bool,
}

impl Note {
    pub(crate) fn new(sealing: &Sealing, packs: Vec<NotedPack>) -> Self {
        Self { format: FORMAT, recipients: sealing.encryption.recipients(), packs }
    }
}

/// What the pack of that number holds of the files' parts. Pure.
pub(crate) fn parts<'a>(number: usize, pieces: impl IntoIterator<Item = &'a Piece>) -> Vec<Part> {
    let part = |piece: &Piece| Part {
        offset: piece.offset,
        bytes: piece.bytes,
        blake3: piece.blake3.clone(),
        steps: piece.steps,
    };
    pieces.into_iter().filter(|piece| piece.pack == number).map(part).collect()
}

/// Whether a later run could take anything over: a pack of many small parts would only be copied for their sake. Pure.
pub(crate) fn is_worth_noting(parts: &[Part]) -> bool {
    let content: u64 = parts.iter().map(|part| part.bytes).sum();
    content >= CONTENT_MIN && parts.iter().any(|part| part.bytes.saturating_mul(SHARE) >= content)
}

/// Keeps a note beside the packs.
pub(crate) async fn keep(repo: &Repository, place: &str, number: usize, note: &Note) -> Result<(), BackupError> {
    let sealed = repo.sealing.seal(&manifest::to_document(note)?)?;
    repo.create(&format!("{place}/{NOTE}{number:05}.{}", repo.sealing.extension()), sealed).await
}

/// Removes the notes of a backup that has ended; they are of no harm.
pub(crate) async fn forget(repo: &Repository, place: &str) -> Result<(), BackupError> {
    for listed in repo.list(place).await?.into_iter().filter(|listed| is_note(&listed.name)) {
        repo.delete(&listed.name).await?;
    }
    Ok(())
}

pub(crate) fn is_note(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|file| file.starts_with(NOTE))
}

/// What other runs have left.
#[derive(Debug, Default)]
pub(crate) struct Known {
    packs: Vec<Pack>,
    /// By length and BLAKE3: a pack's place in `packs`, and the part in it.
    parts: HashMap<(u64, String), (usize, Part)>,
}

#[derive(Debug)]
pub(crate) struct Pack {
    /// Its name in the repository.
    pub(crate) name: String,
    pub(crate) object: Object,
}

impl Known {
    /// Of the runs of these labels.
    ///
    /// # Errors
    /// If the repository cannot be read. What cannot be of use is left out.
    pub(crate) async fn load(repo: &Repository, system_id: u64, labels: &[String]) -> Result<Self, BackupError> {
        let mut known = Self::default();
        // whoever has no key writes everything anew
        let recipients = repo.sealing.encryption.recipients();
        if repo.keys.is_empty() && !recipients.is_empty() {
            return Ok(known);
        }
        for label in labels {
            let place = folder(system_id, label);
            let listed = repo.list(&place).await?;
            let lengths: HashMap<&str, u64> = listed.iter().map(|of| (of.name.as_str(), of.bytes)).collect();
            for name in listed.iter().map(|of| &of.name).filter(|name| is_note(name)) {
                match read(repo, name).await {
                    Ok(note) if note.recipients == recipients => known.add(&place, &lengths, note),
                    Ok(_) => tracing::debug!(name, "what it notes is sealed for others"),
                    Err(error) => tracing::warn!(name, %error, "what an unfinished backup has left is not taken over"),
                }
            }
        }
        Ok(known)
    }

    fn add(&mut self, place: &str, lengths: &HashMap<&str, u64>, note: Note) {
        for NotedPack { object, parts } in note.packs {
            let name = format!("{place}/{}", object.name);
            if lengths.get(name.as_str()) != Some(&object.bytes) {
                continue;
            }
            let content: u64 = parts.iter().map(|part| part.bytes).sum();
            for part in parts.into_iter().filter(|part| part.bytes.saturating_mul(SHARE) >= content) {
                self.parts.entry((part.bytes, part.blake3.clone())).or_insert((self.packs.len(), part));
            }
            self.packs.push(Pack { name, object });
        }
    }

    /// Where a part with this content is: the number of its pack, and the part.
    pub(crate) fn find(&self, bytes: u64, blake3: &str) -> Option<(usize, &Part)> {
        // a look at most: without anything known no key is made
        if self.parts.is_empty() {
            return None;
        }
        self.parts.get(&(bytes, blake3.to_owned())).map(|(pack, part)| (*pack, part))
    }

    pub(crate) fn pack(&self, number: usize) -> Option<&Pack> {
        self.packs.get(number)
    }
}

async fn read(repo: &Repository, name: &str) -> Result<Note, BackupError> {
    let opened = |bytes: &[u8]| {
        let document = seal::unseal(name, bytes, &repo.keys)?;
        manifest::from_document::<Note>(name, &document)
    };
    opened(&repo.get_good(name, |bytes| opened(bytes).map(drop)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: u64, blake3: &str) -> Part {
        Part { offset: 0, bytes, blake3: blake3.to_owned(), steps: false }
    }

    fn pack(number: usize, bytes: u64, parts: Vec<Part>) -> NotedPack {
        let name = format!("pack-{number:05}.zst");
        NotedPack { object: Object { name, bytes, blake3: String::new() }, parts }
    }

    #[test]
    fn only_what_is_there_and_worth_it_is_known() {
        let packs = vec![
            pack(0, 10, vec![part(1600, "a"), part(50, "small")]),
            pack(1, 20, vec![part(8192, "b")]),
            pack(2, 30, vec![part(8192, "c")]),
        ];
        let note = Note { format: FORMAT, recipients: Vec::new(), packs };
        let mut known = Known::default();
        // one is cut short, one is gone
        let lengths = HashMap::from([("7/backups/x/pack-00000.zst", 10), ("7/backups/x/pack-00001.zst", 19)]);
        known.add("7/backups/x", &lengths, note);
        assert_eq!(known.find(1600, "a").map(|(pack, _)| pack), Some(0));
        assert_eq!(known.pack(0).unwrap().name, "7/backups/x/pack-00000.zst");
        for (bytes, hash) in [(1601, "a"), (1600, "d"), (50, "small"), (8192, "b"), (8192, "c")] {
            assert_eq!(known.find(bytes, hash), None, "{bytes} {hash}");
        }
    }
}
