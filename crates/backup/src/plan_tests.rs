//! Plans over small archives.

use std::fmt::Write;

use super::*;
use crate::{
    manifest::{FORMAT, Kind},
    repo::Listed,
};

const MIB16: u64 = 16 << 20;

pub(crate) fn backup(label: &str, timeline: u32, start: u64, stop: u64) -> Manifest {
    Manifest {
        format: FORMAT,
        label: label.to_owned(),
        kind: Kind::Full,
        parent: None,
        system_id: 7,
        timeline,
        start: Lsn(start),
        stop: Lsn(stop),
        started_at: Micros(i64::try_from(start).unwrap()),
        stopped_at: Micros(i64::try_from(stop).unwrap()),
        postgres_version: 150_002,
        wal_segment_bytes: MIB16,
        from_replica: false,
        pages_checked: true,
        pages_damaged: Vec::new(),
        tablespaces: Vec::new(),
        files: 0,
        data_bytes: 5,
        packed_bytes: 0,
        stored_bytes: 0,
        objects: Vec::new(),
    }
}

/// Whole segments, each written at the time of its end's position.
pub(crate) fn archive(segments: &[(u32, u64)], histories: &[(u32, u32, u64)]) -> Inventory {
    let hash = "a".repeat(32);
    let listed = |(timeline, number): &(u32, u64)| {
        let segment = Segment { timeline: *timeline, number: *number };
        let name = segment.file_name(MIB16);
        let written = Micros(i64::try_from(segment.end(MIB16).0).unwrap());
        Listed { name: format!("7/wal/{timeline:08X}/{name}.{hash}.{hash}.zst"), bytes: 1, written }
    };
    let mut inventory = Inventory::from_listing(MIB16, &segments.iter().map(listed).collect::<Vec<_>>());
    for (timeline, _, _) in histories {
        let mut text = String::new();
        for (_, parent, left) in histories.iter().filter(|(other, ..)| other <= timeline) {
            writeln!(text, "{parent}\t{}\tx", Lsn(*left)).unwrap();
        }
        inventory.parsed.insert(*timeline, History::parse(&text).unwrap());
    }
    inventory
}

/// The first bytes of a segment.
fn part(inventory: &mut Inventory, (timeline, number): (u32, u64), bytes: u64) {
    let hash = "b".repeat(32);
    let segment = Segment { timeline, number };
    let name =
        format!("7/wal/{timeline:08X}/{}.partial/00000000-{bytes:08X}.{hash}.{hash}.zst", segment.file_name(MIB16));
    let written = Micros(i64::try_from(segment.start(MIB16).0 + bytes).unwrap());
    let listed = Inventory::from_listing(MIB16, &[Listed { name, bytes: 1, written }]);
    assert_eq!(listed.parts.len(), 1);
    inventory.parts.extend(listed.parts);
}

fn numbers(plan: &Plan) -> Vec<(u32, u64)> {
    plan.segments.iter().map(|segment| (segment.timeline, segment.number)).collect()
}

#[test]
fn a_timeline_that_has_just_begun_hides_nothing() {
    let backups = [backup("a", 1, MIB16, 2 * MIB16 + 500)];
    let branch = 2 * MIB16 + 900;
    let mut inventory = archive(&[(1, 1)], &[(2, 1, branch)]);
    part(&mut inventory, (1, 2), 950);
    let latest = |inventory: &Inventory| plan(&backups, inventory, &Target::Latest, None, Some(2)).unwrap();
    part(&mut inventory, (2, 2), 100);
    let plan = latest(&inventory);
    assert_eq!(
        (numbers(&plan), plan.window.to),
        (vec![(1, 1), (1, 2)], Lsn(branch)),
        "what the old one has beyond is not of it"
    );
    inventory.parts.remove(&Segment { timeline: 2, number: 2 });
    part(&mut inventory, (2, 2), 900);
    assert_eq!(numbers(&latest(&inventory)), [(1, 1), (2, 2)]);
    inventory.parts.remove(&Segment { timeline: 2, number: 2 });
    part(&mut inventory, (2, 2), 2_000);
    assert_eq!(
        (numbers(&latest(&inventory)), latest(&inventory).window.to),
        (vec![(1, 1), (2, 2)], Lsn(2 * MIB16 + 2_000))
    );
}

#[test]
fn the_newest_backup_before_the_target() {
    let backups = [backup("a", 1, MIB16, MIB16 + 100), backup("b", 1, 3 * MIB16, 3 * MIB16 + 100)];
    let inventory = archive(&[(1, 1), (1, 2), (1, 3), (1, 4)], &[]);
    let of = |target| plan(&backups, &inventory, &target, None, None);
    let latest = of(Target::Latest).unwrap();
    assert_eq!((latest.backups.as_slice(), numbers(&latest)), (["b".to_owned()].as_slice(), vec![(1, 3), (1, 4)]));
    let early = of(Target::Lsn { at: Lsn(2 * MIB16 + 1), inclusive: true }).unwrap();
    assert_eq!(
        (early.backups.as_slice(), numbers(&early)),
        (["a".to_owned()].as_slice(), vec![(1, 1), (1, 2), (1, 3)])
    );
    let time = of(Target::Time { at: Micros(i64::try_from(3 * MIB16 + 99).unwrap()), inclusive: true }).unwrap();
    assert_eq!(time.backups, ["a"]);
    let beyond = of(Target::Lsn { at: Lsn(9 * MIB16), inclusive: true }).unwrap_err();
    assert_eq!(
        beyond.to_string(),
        "the position 0/9000000 lies outside of what can be restored: 0/3000064 (1970-01-01T00:00:50Z) to 0/5000000 \
         (1970-01-01T00:01:23Z) on timeline 1, from backup b; 0/1000064 (1970-01-01T00:00:16Z) to 0/5000000 \
         (1970-01-01T00:01:23Z) on timeline 1, from backup a"
    );
    assert_eq!(plan(&[], &inventory, &Target::Latest, None, None), Err(PlanError::NoBackup));
}

#[test]
fn a_gap_ends_the_window_and_is_named() {
    let backups = [backup("a", 1, MIB16, MIB16 + 100), backup("b", 1, 3 * MIB16, 3 * MIB16 + 100)];
    let inventory = archive(&[(1, 1), (1, 2), (1, 4)], &[]);
    let plan_of = |label| plan(&backups, &inventory, &Target::Latest, label, None);
    let error = plan_of(Some("b")).unwrap_err();
    let PlanError::LogMissing { segment, .. } = &error else { panic!("{error}") };
    assert_eq!(segment, "000000010000000000000003");
    let other = plan_of(None).unwrap();
    assert_eq!((other.backups.as_slice(), other.window.to), (["a".to_owned()].as_slice(), Lsn(3 * MIB16)));
    assert_eq!(missing(&inventory, 1, Lsn(MIB16), Lsn(2 * MIB16)), None);
    assert_eq!(missing(&inventory, 1, Lsn(2 * MIB16), Lsn(3 * MIB16 + 1)).unwrap().number, 3);
}

#[test]
fn a_switch_of_timelines_is_followed() {
    // promoted within segment 3: it begins anew on timeline 2
    let backups = [backup("a", 1, MIB16, MIB16 + 100), backup("z", 1, 4 * MIB16, 4 * MIB16 + 100)];
    let all = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5)];
    let inventory = archive(&all, &[(2, 1, 3 * MIB16 + 500)]);
    let latest = plan(&backups, &inventory, &Target::Latest, None, None).unwrap();
    assert_eq!(latest.backups, ["a"], "the other is of the branch that was left");
    assert_eq!(latest.timeline, 2);
    assert_eq!(numbers(&latest), [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]);
    let old = plan(&backups, &inventory, &Target::Latest, None, Some(1)).unwrap();
    assert_eq!((old.backups.as_slice(), numbers(&old)), (["z".to_owned()].as_slice(), vec![(1, 4)]));
    assert_eq!(plan(&backups, &inventory, &Target::Latest, None, Some(9)), Err(PlanError::NoSuchTimeline(9)));
    // the old primary never finished its last segment; the new timeline's has the same bytes up to the branch
    let inventory = archive(&[(1, 1), (1, 2), (2, 3)], &[(2, 1, 3 * MIB16 + 500)]);
    assert_eq!(missing(&inventory, 1, Lsn(2 * MIB16), Lsn(3 * MIB16 + 400)), None);
}

/// Timeline 1 went on to the end of segment 5; then it was restored to within segment 3, and timeline 2 began when 6
/// segments would have been written.
fn restored_to_the_past(second: &[u64]) -> Inventory {
    let mut all = vec![(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)];
    all.extend(second.iter().map(|number| (2, *number)));
    let mut inventory = archive(&all, &[(2, 1, 3 * MIB16 + 500)]);
    for (_, stored) in inventory.segments.iter_mut().filter(|(segment, _)| segment.timeline == 2) {
        stored.written = Micros(stored.written.0 + i64::try_from(3 * MIB16).unwrap());
    }
    inventory
}

#[test]
fn a_moment_belongs_to_the_timeline_of_then() {
    let backups = [backup("a", 1, MIB16, MIB16 + 100), backup("z", 1, 4 * MIB16, 4 * MIB16 + 100)];
    let inventory = restored_to_the_past(&[3, 4]);
    let at = |position: u64| Target::Time { at: Micros(i64::try_from(position).unwrap()), inclusive: true };
    let of = |target: &Target, label| {
        let plan = plan(&backups, &inventory, target, label, None).unwrap();
        (plan.timeline, plan.backups)
    };
    assert_eq!(of(&Target::Latest, None), (2, vec!["a".to_owned()]));
    assert_eq!(of(&at(8 * MIB16), None), (2, vec!["a".to_owned()]), "after the restore");
    assert_eq!(of(&at(5 * MIB16), None), (1, vec!["z".to_owned()]), "what the restore had undone");
    assert_eq!(of(&at(3 * MIB16), None), (1, vec!["a".to_owned()]), "and what lies before the branch, on either");
    assert_eq!(of(&at(5 * MIB16), Some("a")), (1, vec!["a".to_owned()]));
    assert_eq!(left_behind(&inventory, &backups), BTreeSet::from(["z".to_owned()]));
    // a failover leaves nothing: there is one path
    let inventory = archive(&[(1, 1), (1, 2), (2, 3), (2, 4)], &[(2, 1, 3 * MIB16 + 500)]);
    assert_eq!(natural(&inventory, 2, &at(2 * MIB16)), 2);
    assert_eq!(left_behind(&inventory, &backups[..1]), BTreeSet::new());
}

#[test]
fn what_was_left_does_not_fill_a_hole() {
    let of_second = backup("n", 2, 3 * MIB16 + 600, 3 * MIB16 + 900);
    for (second, whole) in [(&[][..], false), (&[4], false), (&[3], true)] {
        let inventory = restored_to_the_past(second);
        let missing = missing(&inventory, 2, of_second.start, of_second.stop);
        assert_eq!(missing.is_none(), whole, "{second:?}: {missing:?}");
        let of = plan(std::slice::from_ref(&of_second), &inventory, &Target::Latest, None, None);
        assert_eq!(of.is_ok(), whole, "{second:?}: {of:?}");
    }
    // timeline 1 counts up to the branch, and no further
    let old = backup("a", 1, MIB16, MIB16 + 100);
    let latest = plan(&[old], &restored_to_the_past(&[4]), &Target::Latest, None, None).unwrap();
    assert_eq!((latest.window.to, numbers(&latest)), (Lsn(3 * MIB16 + 500), vec![(1, 1), (1, 2), (1, 3)]));
}

#[test]
fn a_broken_chain_is_no_backup() {
    let mut backups = vec![backup("a", 1, MIB16, MIB16 + 100), backup("b", 1, 2 * MIB16, 2 * MIB16 + 100)];
    backups[1].parent = Some("a".to_owned());
    let inventory = archive(&[(1, 1), (1, 2)], &[]);
    assert_eq!(plan(&backups, &inventory, &Target::Latest, None, None).unwrap().backups, ["a", "b"]);
    let error = plan(&backups[1..], &inventory, &Target::Latest, None, None).unwrap_err();
    assert_eq!(error.to_string(), "backup b builds on a, which is not there");
    let (windows, errors) = windows(&backups[1..], &inventory);
    assert_eq!((windows.len(), errors.len()), (0, 1));
}
