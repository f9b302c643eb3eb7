//! What of the log is in the repository, for people: ranges, gaps, ends. Pure but for the listing.

use millrace_base::{Lsn, Micros};
use serde::{Deserialize, Serialize};

use super::{
    archive::{Inventory, inventory},
    segment::Segment,
};
use crate::{error::BackupError, repo::Repository};

/// All of the log of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalStatus {
    pub segment_bytes: u64,
    pub timelines: Vec<TimelineStatus>,
    /// Names of segments that are there with two contents: two servers archive to the same place.
    pub conflicts: Vec<String>,
    /// Objects that are not the archive's.
    pub unknown: Vec<String>,
}

/// One timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStatus {
    pub timeline: u32,
    /// The timeline that it branched off, and where.
    pub parent: Option<(u32, Lsn)>,
    pub first: Lsn,
    /// Everything from `first` to here is there, but for `gaps`.
    pub last: Lsn,
    /// When the newest object was written, by the repository's clock.
    pub last_at: Micros,
    pub segments: u64,
    pub stored_bytes: u64,
    pub gaps: Vec<Gap>,
}

/// Segments that are missing between others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub from: Lsn,
    pub to: Lsn,
    /// The first and the last missing file.
    pub first: String,
    pub last: String,
}

/// What of the log of a cluster is in the repository.
///
/// # Errors
/// If the repository cannot be read.
pub async fn status(repo: &Repository, system_id: u64) -> Result<WalStatus, BackupError> {
    Ok(describe(&inventory(repo, system_id).await?))
}

pub(crate) fn describe(inventory: &Inventory) -> WalStatus {
    let bytes = inventory.segment_bytes;
    let name = |segment: &Segment| segment.file_name(bytes);
    WalStatus {
        segment_bytes: bytes,
        timelines: inventory.timelines().into_iter().filter_map(|timeline| of_timeline(inventory, timeline)).collect(),
        conflicts: inventory.conflicts.iter().map(name).collect(),
        unknown: inventory.unknown.clone(),
    }
}

fn of_timeline(inventory: &Inventory, timeline: u32) -> Option<TimelineStatus> {
    let bytes = inventory.segment_bytes;
    let all = || inventory.segments.iter().filter(move |(segment, _)| segment.timeline == timeline);
    let whole = all().map(|(segment, _)| *segment);
    let mut present: Vec<Segment> = whole
        .chain(inventory.parts.keys().copied().filter(|s| s.timeline == timeline && inventory.reach(*s).is_some()))
        .collect();
    present.sort_unstable();
    present.dedup();
    let (first, last) = (*present.first()?, *present.last()?);
    let missing = |pair: &[Segment]| match pair {
        [a, b] if a.number + 1 < b.number => {
            let (from, to) = (a.next(), Segment { number: b.number - 1, ..*b });
            Some(Gap {
                from: from.start(bytes),
                to: to.end(bytes),
                first: from.file_name(bytes),
                last: to.file_name(bytes),
            })
        }
        _ => None,
    };
    let parts = || inventory.parts.iter().filter(move |(s, _)| s.timeline == timeline).flat_map(|(_, parts)| parts);
    let objects = || all().map(|(_, stored)| stored).chain(parts().map(|part| &part.stored));
    Some(TimelineStatus {
        timeline,
        parent: inventory
            .history(timeline)
            .path(timeline)
            .get(1)
            .zip(inventory.history(timeline).path(timeline).first())
            .map(|(parent, own)| (parent.0, own.1)),
        first: first.start(bytes),
        last: inventory.reach(last)?,
        last_at: objects().map(|stored| stored.written).max().unwrap_or_default(),
        segments: u64::try_from(all().count()).unwrap_or(u64::MAX),
        stored_bytes: objects().map(|stored| stored.bytes).sum(),
        gaps: present.windows(2).filter_map(missing).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Listed;

    #[test]
    fn gaps_are_named() {
        let hash = "a".repeat(32);
        let listing: Vec<Listed> = [1, 2, 5, 6]
            .map(|number| Listed {
                name: format!("7/wal/00000001/{number:024X}.{hash}.{hash}.zst").replacen("/00000000", "/00000001", 1),
                bytes: 10,
                written: Micros(number),
            })
            .to_vec();
        let status = describe(&Inventory::from_listing(16 << 20, &listing));
        let [timeline] = status.timelines.as_slice() else { panic!("{status:?}") };
        assert_eq!((timeline.first, timeline.last), (Lsn(16 << 20), Lsn(7 * (16 << 20))));
        assert_eq!((timeline.segments, timeline.stored_bytes, timeline.last_at), (4, 40, Micros(6)));
        let [gap] = timeline.gaps.as_slice() else { panic!("{timeline:?}") };
        assert_eq!((gap.first.as_str(), gap.last.as_str()), ("000000010000000000000003", "000000010000000000000004"));
    }
}
