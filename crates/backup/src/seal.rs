//! Compression and encryption of objects: zstd, then the age format (<https://age-encryption.org/v1>).
//!
//! Only what is public (the recipients) is needed to write. Whoever reads needs the secret of one recipient:
//! `age -d -i key.txt object | zstd -d` gives the content without this program. age authenticates every 64 KiB.

use std::{
    borrow::Cow,
    fmt,
    io::{Read as _, Write as _},
    sync::Arc,
};

use age::{Decryptor, Encryptor, Identity, Recipient, x25519};
use millrace_base::Secret;
use zstd::bulk::Compressor;

use crate::error::BackupError;

/// Whom objects are encrypted for.
#[derive(Clone)]
pub enum Encryption {
    /// Each of them can read; keys are rotated by adding the new and, later, dropping the old.
    Recipients(Vec<x25519::Recipient>),
    /// Anyone who can read the repository can read the data.
    Off,
}

impl Encryption {
    /// From public keys (`age1…`).
    ///
    /// # Errors
    /// If there is none, or one is not a public key of age.
    pub fn to<'a>(recipients: impl IntoIterator<Item = &'a str>) -> Result<Self, BackupError> {
        let parse = |text: &str| {
            text.trim().parse().map_err(|error| BackupError::BadKey(format!("`{text}` is no public key: {error}")))
        };
        let all = recipients.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() {
            return Err(BackupError::BadKey("no recipient is named, and encryption is not off".to_owned()));
        }
        Ok(Self::Recipients(all))
    }

    /// Public keys; none where it is off.
    pub(crate) fn recipients(&self) -> Vec<String> {
        match self {
            Self::Recipients(all) => all.iter().map(ToString::to_string).collect(),
            Self::Off => Vec::new(),
        }
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recipients(_) => f.debug_list().entries(self.recipients()).finish(),
            Self::Off => f.write_str("Off"),
        }
    }
}

/// Secret keys to read with; cheap to clone, never shown.
#[derive(Clone, Default)]
pub struct Keys(Arc<Vec<x25519::Identity>>);

impl Keys {
    /// From the text of key files of age: lines that begin with `#` are comments.
    ///
    /// # Errors
    /// If a line is not a secret key of age.
    pub fn parse(text: &Secret) -> Result<Self, BackupError> {
        let lines = text.reveal().lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines
            .enumerate()
            .map(|(i, line)| {
                // the line itself must not be shown
                line.parse().map_err(|error| BackupError::BadKey(format!("key {} of the file: {error}", i + 1)))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(keys)))
    }

    /// A new secret key and its public one.
    #[must_use]
    pub fn generate() -> (Secret, String) {
        use age::secrecy::ExposeSecret;
        let key = x25519::Identity::generate();
        (Secret::new(key.to_string().expose_secret()), key.to_public().to_string())
    }

    /// The public keys that belong to a text as [`Keys::parse`] takes it.
    ///
    /// # Errors
    /// As there.
    pub fn public(text: &Secret) -> Result<Vec<String>, BackupError> {
        Ok(Self::parse(text)?.0.iter().map(|key| key.to_public().to_string()).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// No object has more content.
const CONTENT_MAX: u64 = 1 << 30;

/// zstd's level where time counts more than room.
const HASTY_LEVEL: i32 = 1;

/// How objects are written.
#[derive(Debug, Clone)]
pub struct Sealing {
    /// zstd's level.
    pub level: i32,
    pub encryption: Encryption,
}

impl Sealing {
    /// zstd's level 3.
    #[must_use]
    pub fn new(encryption: Encryption) -> Self {
        Self { level: 3, encryption }
    }

    /// The end of the names of what is sealed so.
    pub(crate) fn extension(&self) -> &'static str {
        match self.encryption {
            Encryption::Recipients(_) => "zst.age",
            Encryption::Off => "zst",
        }
    }

    /// The same, but compressed in half the time and somewhat less.
    pub(crate) fn hasty(&self) -> Self {
        Self { level: self.level.min(HASTY_LEVEL), ..self.clone() }
    }

    /// For [`Self::seal_with`].
    pub(crate) fn compressor(&self) -> Result<Compressor<'static>, BackupError> {
        Compressor::new(self.level).map_err(|error| BackupError::Encrypt(error.to_string()))
    }

    /// Seals all of `content`.
    pub(crate) fn seal(&self, content: &[u8]) -> Result<Vec<u8>, BackupError> {
        self.seal_with(&mut self.compressor()?, content)
    }

    /// The same with the tables of an earlier call, whatever its level was.
    pub(crate) fn seal_with(
        &self,
        compressor: &mut Compressor<'static>,
        content: &[u8],
    ) -> Result<Vec<u8>, BackupError> {
        let failed = |error: &dyn fmt::Display| BackupError::Encrypt(error.to_string());
        compressor.set_compression_level(self.level).map_err(|e| failed(&e))?;
        // all at once: a stream would be compressed in pieces that cannot see each other without a copy
        let compressed = compressor.compress(content).map_err(|e| failed(&e))?;
        let Encryption::Recipients(all) = &self.encryption else { return Ok(compressed) };
        let all = all.iter().map(|recipient| recipient as &dyn Recipient);
        let encryptor = Encryptor::with_recipients(all).map_err(|e| failed(&e))?;
        // age adds 16 bytes to each 64 KiB, and a header
        let sealed = Vec::with_capacity(compressed.len() + compressed.len() / 4_000 + 1_024);
        let mut writer = encryptor.wrap_output(sealed).map_err(|e| failed(&e))?;
        writer.write_all(&compressed).map_err(|e| failed(&e))?;
        writer.finish().map_err(|e| failed(&e))
    }
}

/// The compressed content of a sealed object. `object` is its name: it says how it is sealed, and errors name it.
fn decrypt<'a>(object: &str, sealed: &'a [u8], keys: &Keys) -> Result<Cow<'a, [u8]>, BackupError> {
    if !object.ends_with(".age") {
        return Ok(Cow::Borrowed(sealed));
    }
    if keys.is_empty() {
        return Err(BackupError::NoKey { object: object.to_owned() });
    }
    let decryptor = Decryptor::new_buffered(sealed).map_err(|error| BackupError::damaged(object, error))?;
    let mut plain = decryptor.decrypt(keys.0.iter().map(|key| key as &dyn Identity)).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => BackupError::WrongKey { object: object.to_owned() },
        other => BackupError::damaged(object, other),
    })?;
    let mut compressed = Vec::with_capacity(sealed.len());
    plain.read_to_end(&mut compressed).map_err(|error| BackupError::damaged(object, error))?;
    Ok(Cow::Owned(compressed))
}

/// Opens a sealed object into the beginning of `room`, which grows if it must; how long the content is.
pub(crate) fn open_into(object: &str, sealed: &[u8], keys: &Keys, room: &mut Vec<u8>) -> Result<usize, BackupError> {
    let compressed = decrypt(object, sealed, keys)?;
    let length = zstd::zstd_safe::get_frame_content_size(&compressed).ok().flatten();
    let length = length.filter(|length| *length <= CONTENT_MAX).and_then(|length| usize::try_from(length).ok());
    let length = length.ok_or_else(|| BackupError::damaged(object, "it does not say how long its content is"))?;
    if room.len() < length {
        // zeros from the system, not written one by one
        *room = vec![0; length.next_power_of_two()];
    }
    let place = room.get_mut(..length).unwrap_or_default();
    let opened = zstd::bulk::decompress_to_buffer(&compressed, place);
    match opened.map_err(|error| BackupError::damaged(object, error))? {
        opened if opened == length => Ok(length),
        opened => Err(BackupError::damaged(object, format!("it has {opened} bytes and says {length}"))),
    }
}

/// All of the content of a sealed object.
pub(crate) fn unseal(object: &str, sealed: &[u8], keys: &Keys) -> Result<Vec<u8>, BackupError> {
    let mut content = Vec::new();
    let length = open_into(object, sealed, keys, &mut content)?;
    content.truncate(length);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_reads_and_nobody_else() {
        let (old, old_public) = Keys::generate();
        let (new, new_public) = Keys::generate();
        let (other, _) = Keys::generate();
        let sealing = Sealing::new(Encryption::to([old_public.as_str(), &new_public]).unwrap());
        let content = vec![7u8; 300_000];
        let sealed = sealing.seal(&content).unwrap();
        for key in [&old, &new] {
            assert_eq!(unseal("x.zst.age", &sealed, &Keys::parse(key).unwrap()).unwrap(), content);
        }
        let wrong = unseal("x.zst.age", &sealed, &Keys::parse(&other).unwrap()).unwrap_err();
        assert!(matches!(&wrong, BackupError::WrongKey { object } if object == "x.zst.age"), "{wrong}");
        let none = unseal("x.zst.age", &sealed, &Keys::default()).unwrap_err();
        assert!(matches!(none, BackupError::NoKey { .. }), "{none}");
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let (key, public) = Keys::generate();
        let sealed = Sealing::new(Encryption::to([public.as_str()]).unwrap()).seal(b"some content").unwrap();
        let keys = Keys::parse(&key).unwrap();
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(unseal("x.age", &damaged, &keys).is_err(), "byte {at}");
        }
    }

    #[test]
    fn keys_are_never_shown() {
        let (key, _) = Keys::generate();
        let text = Secret::new(format!("# made for a test\n{}\n", key.reveal()));
        assert_eq!(format!("{:?}", Keys::parse(&text).unwrap()), "Keys(1)");
        let bad = Keys::parse(&Secret::new("hunter2")).unwrap_err().to_string();
        assert!(!bad.contains("hunter2"), "{bad}");
        assert!(Encryption::to([]).is_err());
    }
}
