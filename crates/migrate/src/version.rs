//! Versions: numbers, most significant first.

use std::{cmp::Ordering, fmt};

use crate::MigrateError;

/// `1`, `1.2`, `2024.11.05`; `1` equals `1.0`.
#[derive(Debug, Clone)]
pub struct Version(Vec<u64>);

impl Version {
    /// From numbers with dots or underscores between them.
    ///
    /// # Errors
    /// [`MigrateError::BadVersion`]; `script` is named in it.
    pub fn parse(text: &str, script: &str) -> Result<Self, MigrateError> {
        let number = |part: &str| {
            let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| part.parse().ok()).flatten()
        };
        text.split(['.', '_'])
            .map(number)
            .collect::<Option<Vec<u64>>>()
            .map(Self)
            .ok_or_else(|| MigrateError::BadVersion { version: text.to_owned(), script: script.to_owned() })
    }

    fn significant(&self) -> &[u64] {
        let end = self.0.iter().rposition(|n| *n != 0).map_or(0, |at| at + 1);
        self.0.get(..end).unwrap_or_default()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, n) in self.0.iter().enumerate() {
            write!(f, "{}{n}", if i > 0 { "." } else { "" })?;
        }
        Ok(())
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.significant() == other.significant()
    }
}
impl Eq for Version {}
impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.significant().cmp(other.significant())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text, "x.sql").unwrap()
    }

    #[test]
    fn order_is_numeric() {
        let sorted = ["0.9", "1", "1.0.1", "1.2", "1.10", "2", "10"].map(version);
        assert!(sorted.is_sorted_by(|a, b| a < b));
        assert_eq!(version("1_2"), version("1.2.0"));
        assert_eq!(version("1_02").to_string(), "1.2");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "1.", ".1", "1.a", "-1", "+1", "99999999999999999999"] {
            assert!(Version::parse(text, "x.sql").is_err(), "{text}");
        }
    }
}
