//! A position in PostgreSQL's write-ahead log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log; `0/0` means "no position" (`InvalidXLogRecPtr`).
///
/// Written as PostgreSQL writes it: two hexadecimal halves, `16/B374D848`
/// (PostgreSQL manual, "pg_lsn Type").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position.
    pub const INVALID: Self = Self(0);

    /// Whether this names a position at all.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes of log from `earlier` up to this position; 0 when `earlier` is ahead.
    #[must_use]
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not two hexadecimal numbers of at most 32 bits joined by a slash.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a log position; one looks like 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |s: &str| {
            // `from_str_radix` would accept a sign
            if s.bytes().all(|b| b.is_ascii_hexdigit()) {
                u32::from_str_radix(s, 16).map_err(|_| bad())
            } else {
                Err(bad())
            }
        };
        Ok(Self((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "+1/2", "1/-2", "G/0", "100000000/0", "1/2/3"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
