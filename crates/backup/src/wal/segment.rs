//! Names of files of the log, and histories of timelines. Pure.

use std::fmt;

use millrace_base::Lsn;
use serde::{Deserialize, Serialize};

/// One file of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Segment {
    pub timeline: u32,
    /// Counted from the log's beginning.
    pub number: u64,
}

impl Segment {
    /// The file that holds the byte at `at`.
    #[must_use]
    pub fn of(timeline: u32, at: Lsn, segment_bytes: u64) -> Self {
        Self { timeline, number: at.0 / segment_bytes }
    }

    #[must_use]
    pub fn start(self, segment_bytes: u64) -> Lsn {
        Lsn(self.number * segment_bytes)
    }

    #[must_use]
    pub fn end(self, segment_bytes: u64) -> Lsn {
        Lsn((self.number + 1) * segment_bytes)
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }

    /// As PostgreSQL names it (`XLogFileName`).
    #[must_use]
    pub fn file_name(self, segment_bytes: u64) -> String {
        let per_id = (1u64 << 32) / segment_bytes;
        format!("{:08X}{:08X}{:08X}", self.timeline, self.number / per_id, self.number % per_id)
    }

    /// From a name of 24 hexadecimal digits.
    #[must_use]
    pub fn parse(name: &str, segment_bytes: u64) -> Option<Self> {
        if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte)) {
            return None;
        }
        let field = |range| name.get(range).and_then(|digits: &str| u32::from_str_radix(digits, 16).ok());
        let (timeline, high, low) = (field(0..8)?, field(8..16)?, field(16..24)?);
        let per_id = (1u64 << 32) / segment_bytes;
        (u64::from(low) < per_id).then(|| Self { timeline, number: u64::from(high) * per_id + u64::from(low) })
    }
}

/// Where a timeline comes from: its ancestors, oldest first, each with the position where it was left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(Vec<(u32, Lsn)>);

/// A history file has a line that is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line `{0}` of a timeline's history is not understood")]
pub struct HistoryError(String);

impl History {
    /// From the content of a `.history` file.
    ///
    /// # Errors
    /// If a line is not one of such a file, or the ancestors are out of order.
    pub fn parse(content: &str) -> Result<Self, HistoryError> {
        let mut ancestors: Vec<(u32, Lsn)> = Vec::new();
        for line in content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let parsed = fields.next().zip(fields.next()).and_then(|(timeline, switch)| {
                let (timeline, switch) = (timeline.parse().ok()?, switch.parse().ok()?);
                ancestors.last().is_none_or(|last| last.0 < timeline && last.1 <= switch).then_some((timeline, switch))
            });
            ancestors.push(parsed.ok_or_else(|| HistoryError(line.to_owned()))?);
        }
        Ok(Self(ancestors))
    }

    /// Where `timeline` was left on the way to this one; `None` if it is no ancestor.
    #[must_use]
    pub fn left(&self, timeline: u32) -> Option<Lsn> {
        self.0.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, switch)| *switch)
    }

    /// The timelines up to `own`, the newest first, each with the position where it begins.
    #[must_use]
    pub fn path(&self, own: u32) -> Vec<(u32, Lsn)> {
        let begins = std::iter::once(Lsn(0)).chain(self.0.iter().map(|(_, switch)| *switch));
        let timelines = self.0.iter().map(|(timeline, _)| *timeline).chain([own]);
        let mut path: Vec<_> = timelines.zip(begins).collect();
        path.reverse();
        path
    }
}

/// `00000002.history`.
pub(crate) fn history_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

/// The timeline whose history file has this name.
pub(crate) fn parse_history_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".history")?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (timeline, switch) in &self.0 {
            write!(f, "{timeline} until {switch}; ")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB16: u64 = 16 << 20;

    proptest! {
        #[test]
        fn names_round_trip(timeline in 1u32.., at in 0u64..1 << 62, shift in 20u32..30) {
            let bytes = 1u64 << shift;
            let segment = Segment::of(timeline, Lsn(at), bytes);
            prop_assert_eq!(Segment::parse(&segment.file_name(bytes), bytes), (at >> 32 < 1 << 32).then_some(segment));
            prop_assert!(segment.start(bytes) <= Lsn(at) && Lsn(at) < segment.end(bytes));
        }
    }

    #[test]
    fn named_as_postgresql_does() {
        let segment = Segment::of(1, "2/FF000028".parse().unwrap(), MIB16);
        assert_eq!(segment.file_name(MIB16), "0000000100000002000000FF");
        assert_eq!(segment.next().file_name(MIB16), "000000010000000300000000");
        for bad in ["", "000000010000000200000100", "00000001000000020000000G", "0000000100000002000000ff"] {
            assert_eq!(Segment::parse(bad, MIB16), None, "{bad}");
        }
    }

    #[test]
    fn histories() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2000-01-01\n";
        let history = History::parse(text).unwrap();
        assert_eq!(history.left(1), Some(Lsn(0x300_0148)));
        assert_eq!(history.left(3), None);
        assert_eq!(history.path(3), [(3, Lsn(0x500_0000)), (2, Lsn(0x300_0148)), (1, Lsn(0))]);
        assert_eq!(History::default().path(1), [(1, Lsn(0))]);
        assert!(History::parse("nonsense").is_err());
        assert!(History::parse("2\t0/2\tx\n1\t0/3\tx\n").is_err());
        assert_eq!(parse_history_name("0000000A.history"), Some(10));
    }
}
