//! A text that must not be shown.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A password or key: its `Debug` and `Display` never show the value.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// 32 letters and digits from the system's generator: about 190 bits.
    #[must_use]
    pub fn generate() -> Self {
        use rand::{Rng, distr::Alphanumeric};
        Self(rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect())
    }

    /// The value itself: for the one place that must send it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_shown() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret} {secret:?}").contains("hunter2"));
        assert_eq!(Secret::generate().reveal().len(), 32);
        assert_ne!(Secret::generate(), Secret::generate());
    }
}
