//! Who is the primary, what acknowledged commits are on, and what has happened to both.
//!
//! The words for it are made here and nowhere else: the command line and the console say the same.

use std::fmt;

use millrace_base::Micros;
use serde::{Deserialize, Serialize};

/// The cluster, beyond its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSummary {
    /// Its name, once known.
    pub primary: Option<String>,
    /// It answers, accepts writes and has its own roles.
    pub primary_ready: bool,
    /// Grows with each election.
    pub term: u64,
    /// Replicas of which `quorum` have every acknowledged commit on disk.
    pub members: Vec<String>,
    pub quorum: usize,
    /// By the configuration.
    pub failover: bool,
    /// No election, by an operator's word.
    pub paused: bool,
}

impl ClusterSummary {
    /// What acknowledged commits are on.
    #[must_use]
    pub fn promise_text(&self) -> String {
        match self.quorum {
            0 => ALONE.to_owned(),
            quorum => format!("every acknowledged commit is on the primary and on {}", some_of(quorum, &self.members)),
        }
    }

    /// Whether a lost primary is replaced, in a word, and what follows from it.
    #[must_use]
    pub fn failover_words(&self) -> (&'static str, &'static str) {
        match (self.failover, self.paused) {
            (false, _) => ("off", "by [cluster] failover; a crashed primary is started again"),
            (true, true) => ("paused", "a crashed primary is started again; `millrace cluster resume` ends that"),
            (true, false) => ("on", "a lost primary is replaced"),
        }
    }
}

/// What happened to the office of primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Elected {
        from: String,
        to: String,
        why: String,
        /// Bytes of log that `from` was seen to have and `to` has not: they may be lost.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        missing_bytes: Option<u64>,
    },
    Promoted {
        node: String,
        /// Since the election.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after_ms: Option<u64>,
        /// Since a primary was last seen to accept writes.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        away_ms: Option<u64>,
    },
    /// What acknowledged commits are on from now on, as `synchronous_standby_names` has it; empty: on the primary
    /// alone.
    Promise {
        setting: String,
    },
    Paused {
        paused: bool,
    },
    /// The node begins a term without an election.
    TookOffice {
        node: String,
    },
    /// Its server has ended, and others may take its place.
    Resigned {
        node: String,
        why: String,
    },
    /// Other settings for every server, by an operator's word.
    Settings {
        changed: Vec<String>,
    },
    /// An operator wants a server restarted.
    Restarted {
        node: String,
    },
    /// By the configuration.
    Added {
        node: String,
    },
    /// By the configuration: no commit waits for it any more.
    Removed {
        node: String,
    },
    /// Its data is what a backup and the log after it gave.
    Restored {
        node: String,
        backup: String,
        target: String,
    },
}

impl Event {
    /// What kind of event it is, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Elected { .. } => "election",
            Self::Promoted { .. } => "promotion",
            Self::Promise { .. } => "promise",
            Self::Paused { paused: true } => "pause",
            Self::Paused { paused: false } => "resume",
            Self::TookOffice { .. } => "new term",
            Self::Resigned { .. } => "resignation",
            Self::Settings { .. } => "settings",
            Self::Restarted { .. } => "restart",
            Self::Added { .. } => "node added",
            Self::Removed { .. } => "node removed",
            Self::Restored { .. } => "restore",
        }
    }
}

/// The event as a sentence.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elected { from, to, why, missing_bytes } => {
                write!(f, "{to} elected after {from}: {why}")?;
                match missing_bytes {
                    Some(bytes) => write!(f, "; up to {bytes} bytes of log of {from} are lost"),
                    None => Ok(()),
                }
            }
            Self::Promoted { node, after_ms, away_ms } => {
                write!(f, "{node} accepts writes")?;
                if let Some(ms) = after_ms {
                    write!(f, ", {ms} ms after its election")?;
                }
                match away_ms {
                    Some(ms) => write!(f, "; writes were away for up to {ms} ms"),
                    None => Ok(()),
                }
            }
            Self::Promise { setting } if setting.is_empty() => f.write_str(ALONE),
            Self::Promise { setting } => write!(f, "every commit is on the primary and on {}", in_words(setting)),
            Self::Paused { paused: true } => f.write_str("failover paused by an operator"),
            Self::Paused { paused: false } => f.write_str("failover resumed by an operator"),
            Self::TookOffice { node } => write!(f, "{node} begins a term"),
            Self::Resigned { node, why } => write!(f, "{node} makes way: {why}"),
            Self::Settings { changed } => write!(f, "servers are given {}", changed.join(", ")),
            Self::Restarted { node } => write!(f, "an operator wants {node} restarted"),
            Self::Added { node } => write!(f, "{node} is a node of the cluster"),
            Self::Removed { node } => write!(f, "{node} is no node of the cluster any more"),
            Self::Restored { node, backup, target } => {
                write!(f, "{node} has been restored from backup {backup} to {target}")
            }
        }
    }
}

/// An event, when, and in which term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Micros,
    pub term: u64,
    #[serde(flatten)]
    pub event: Event,
}

const ALONE: &str = "commits are on the primary alone";

fn some_of(quorum: usize, members: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = members.iter().map(AsRef::as_ref).collect();
    match names.as_slice() {
        [only] => (*only).to_owned(),
        all if all.len() <= quorum => format!("all of {}", all.join(", ")),
        more => format!("any {quorum} of {}", more.join(", ")),
    }
}

/// `ANY 1 ("b", "c")` in words; what the platform would not have set stays as it is.
fn in_words(setting: &str) -> String {
    let parsed = || {
        let (quorum, names) = setting.strip_prefix("ANY ")?.strip_suffix(')')?.split_once(" (")?;
        let names: Option<Vec<&str>> =
            names.split(", ").map(|quoted| quoted.strip_prefix('"')?.strip_suffix('"')).collect();
        Some(some_of(quorum.parse().ok()?, &names?))
    };
    parsed().unwrap_or_else(|| setting.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_a_sentence() {
        let text = |event: Event| format!("{}: {event}", event.kind());
        let elected = |missing_bytes| Event::Elected {
            from: "a".into(),
            to: "b".into(),
            why: "the server was killed by signal 9".into(),
            missing_bytes,
        };
        let promoted = |after_ms, away_ms| Event::Promoted { node: "b".into(), after_ms, away_ms };
        let promise = |setting: &str| Event::Promise { setting: setting.into() };
        let cases = [
            (elected(None), "election: b elected after a: the server was killed by signal 9"),
            (
                elected(Some(7)),
                "election: b elected after a: the server was killed by signal 9; up to 7 bytes of log of a are lost",
            ),
            (promoted(None, None), "promotion: b accepts writes"),
            (
                promoted(Some(210), Some(460)),
                "promotion: b accepts writes, 210 ms after its election; writes were away for up to 460 ms",
            ),
            (promise(""), "promise: commits are on the primary alone"),
            (promise("ANY 1 (\"b\", \"c\")"), "promise: every commit is on the primary and on any 1 of b, c"),
            (promise("ANY 2 (\"b\", \"c\")"), "promise: every commit is on the primary and on all of b, c"),
            (promise("ANY 1 (\"b\")"), "promise: every commit is on the primary and on b"),
            (promise("FIRST 1 (b)"), "promise: every commit is on the primary and on FIRST 1 (b)"),
            (Event::Paused { paused: true }, "pause: failover paused by an operator"),
            (Event::Paused { paused: false }, "resume: failover resumed by an operator"),
            (Event::TookOffice { node: "b".into() }, "new term: b begins a term"),
            (
                Event::Restored { node: "a".into(), backup: "f1".into(), target: "the latest point".into() },
                "restore: a has been restored from backup f1 to the latest point",
            ),
            (Event::Resigned { node: "b".into(), why: "is stopped".into() }, "resignation: b makes way: is stopped"),
        ];
        for (event, words) in cases {
            assert_eq!(text(event), words);
        }
    }

    #[test]
    fn a_line_of_an_older_version_is_read() {
        let line = r#"{"at":1,"term":2,"event":"promoted","node":"b","after_ms":210}"#;
        let event = Event::Promoted { node: "b".into(), after_ms: Some(210), away_ms: None };
        assert_eq!(serde_json::from_str::<Entry>(line).unwrap(), Entry { at: Micros(1), term: 2, event });
    }

    #[test]
    fn the_summary_says_what_is_promised() {
        let summary = |quorum, members: &[&str]| ClusterSummary {
            quorum,
            members: members.iter().map(|name| (*name).to_owned()).collect(),
            ..ClusterSummary::default()
        };
        assert_eq!(summary(0, &[]).promise_text(), "commits are on the primary alone");
        let text = summary(1, &["b", "c"]).promise_text();
        assert_eq!(text, "every acknowledged commit is on the primary and on any 1 of b, c");
    }
}
