//! What the event triggers say ([`crate::prepare`] installs them): messages in the log about changes of rows
//! that the log itself does not show.

use serde::Deserialize;

/// Prefix of the messages; others of ours are only there to bring the stream forward.
pub(crate) const PREFIX: &str = "millrace.ddl";

/// One message.
#[derive(Debug, Deserialize)]
pub(crate) struct Told {
    what: String,
    /// The published table.
    pub(crate) oid: u32,
    /// Columns that have a value in rows from before they were added.
    #[serde(default)]
    columns: Vec<String>,
}

impl Told {
    /// Reads a message; `None` if it is none of these.
    pub(crate) fn read(prefix: &str, content: &[u8]) -> Option<Self> {
        if prefix != PREFIX {
            return None;
        }
        match serde_json::from_slice(content) {
            Ok(told) => Some(told),
            Err(error) => {
                tracing::warn!(%error, "a message about a change of a table is not understood");
                None
            }
        }
    }

    /// Whether the table's rows may show something else now than what was streamed, given the columns that were.
    pub(crate) fn makes_stale(&self, knows: impl Fn(&str) -> bool) -> bool {
        self.what != "filled" || !self.columns.iter().all(|column| knows(column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_columns_that_are_not_known_make_a_table_stale() {
        let told = |content: &str| Told::read(PREFIX, content.as_bytes());
        assert!(told(r#"{"what": "rewritten", "oid": 7, "columns": []}"#).unwrap().makes_stale(|_| true));
        let filled = told(r#"{"what": "filled", "oid": 7, "columns": ["a", "b"]}"#).unwrap();
        assert!(filled.makes_stale(|column| column == "a"));
        assert!(!filled.makes_stale(|_| true));
        assert!(told("verify").is_none());
        assert!(Told::read("millrace", br#"{"what": "rewritten", "oid": 7}"#).is_none());
    }
}
