//! The rules about disks that take nothing, or are full.

use proptest::{option, prelude::*};

use super::{
    tests::{NOW, after, down, intent, observed, since, view, well},
    *,
};
use crate::{observed::DiskView, plan::Change};

pub(super) fn disk() -> impl Strategy<Value = DiskView> {
    (option::weighted(0.2, since()), prop_oneof![4 => Just(false), 1 => Just(true)])
        .prop_map(|(stuck_since, full)| DiskView { stuck_since, full })
}

fn stuck(view: &mut NodeView, seconds: u64) {
    view.disk.stuck_since = Some(NOW - Duration::from_secs(seconds));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// The supervisor would wait too, and those of whose disk it is have not ended.
    #[test]
    fn a_disk_that_takes_nothing_is_not_written_to(observed in observed(), intent in intent()) {
        let plan = decide(&observed, &intent, NOW);
        for (name, view) in &observed.nodes {
            let held = view.disk.stuck_since.is_some() || view.dying && !view.may_write;
            let harmless = |action: &Action| match action {
                Action::Fence => true,
                // a server that runs is asked to stop, or is taken as it is
                Action::Adopt | Action::Stop(_) => intent.goal == Goal::Stop || matches!(action, Action::Adopt),
                _ => false,
            };
            let planned = &plan.nodes[name];
            prop_assert!(!held || planned.actions.iter().all(harmless), "{name}: {planned:?}");
            prop_assert!(!view.disk.full || planned.sentence.ends_with("; its disk is full"));
        }
        if let Some(Change::Elect { node, .. }) = &plan.change
            && intent.wish.is_none()
        {
            let (elected, old) = (observed.nodes[node].disk, observed.nodes[&intent.primary].disk);
            prop_assert!(elected.stuck_since.is_none() && !(elected.full && old.full));
        }
    }
}

#[test]
fn a_primary_whose_disk_takes_nothing_is_replaced() {
    let short = after("a", |o, _| stuck(view(o, "a"), 2));
    assert_eq!((short.sentence.as_str(), short.actions.as_slice()), ("its disk has taken nothing for 2 s", &[][..]));
    assert!(short.trouble.is_none());

    // what it answers does not matter
    let long = after("a", |o, _| stuck(view(o, "a"), 4));
    assert_eq!(long.sentence, "its disk has taken nothing for 4.0 s; is killed, so that it writes no more");
    assert_eq!(long.actions, [Action::Fence]);

    let (mut observed, intent) = well();
    let a = view(&mut observed, "a");
    stuck(a, 4);
    down(a);
    // its processes wait for the disk
    a.dying = true;
    let plan = decide(&observed, &intent, NOW);
    let why = "its disk has taken nothing for 4.0 s".to_owned();
    assert_eq!(plan.change, Some(Change::Elect { node: NodeName::new("b"), missing: Some(10), why }));
    assert!(plan.nodes[&NodeName::new("a")].actions.is_empty());
}

#[test]
fn nobody_takes_the_place_of_one_by_whose_disk_it_waits_too() {
    let both = |o: &mut Observed| ["a", "b", "c"].iter().for_each(|name| stuck(view(o, name), 4));
    let plan = after("a", |o, _| both(o));
    assert_eq!(
        plan.sentence,
        "its disk has taken nothing for 4 s; no other node can take its place: the disk of b, which has the most, takes nothing either"
    );
    assert!(plan.actions.is_empty() && plan.trouble.is_some());
    // the other one has as much
    let plan = after("a", |o, _| ["a", "b"].iter().for_each(|name| stuck(view(o, name), 4)));
    assert_eq!(plan.actions, [Action::Fence]);
}

#[test]
fn one_that_was_killed_waits_until_its_processes_have_ended() {
    let successor = |o: &mut Observed, i: &mut Intent| {
        i.primary = NodeName::new("b");
        *view(o, "b") = tests_primary();
        let a = view(o, "a");
        down(a);
    };
    let plan = after("a", |o, i| {
        successor(o, i);
        stuck(view(o, "a"), 9);
        view(o, "a").dying = true;
    });
    assert_eq!((plan.sentence.as_str(), plan.actions.len()), ("its disk has taken nothing for 9 s", 0));
    let plan = after("a", |o, i| {
        successor(o, i);
        view(o, "a").dying = true;
    });
    assert_eq!((plan.sentence.as_str(), plan.actions.len()), ("has been killed, and ends when its disk answers", 0));
    let plan = after("a", successor);
    assert_eq!(plan.actions, [Action::Rewind { from: NodeName::new("b") }]);
    // begun on a full disk it would end halfway
    let plan = after("a", |o, i| {
        successor(o, i);
        view(o, "a").disk.full = true;
    });
    assert_eq!(
        (plan.sentence.as_str(), plan.actions.len()),
        ("was the primary and is brought back to b's history, once there is room; its disk is full", 0)
    );
    assert!(plan.trouble.unwrap().what_to_do.starts_with("free space on the disk of a"));
}

fn tests_primary() -> NodeView {
    well().0.nodes.remove(&NodeName::new("a")).unwrap()
}

#[test]
fn a_full_disk_is_not_exchanged_for_another() {
    let ended = |o: &mut Observed| {
        let a = view(o, "a");
        down(a);
        a.disk.full = true;
        a.failure = Some(Failure {
            kind: FailureKind::Crashed,
            what: "the server ended with code 1: no space is left on the disk of /a/data".into(),
            what_to_do: None,
            at: NOW,
            not_before: NOW + Duration::from_secs(1),
            next_try: 1,
        });
    };
    let elected = |full: &[&str]| {
        let (mut observed, intent) = well();
        ended(&mut observed);
        full.iter().for_each(|name| view(&mut observed, name).disk.full = true);
        match decide(&observed, &intent, NOW).change {
            Some(Change::Elect { node, .. }) => Some(node.to_string()),
            _ => None,
        }
    };
    assert_eq!(elected(&[]).as_deref(), Some("b"));
    assert_eq!(elected(&["b"]).as_deref(), Some("c"));
    assert_eq!(elected(&["b", "c"]), None);
}

#[test]
fn who_has_part_of_a_record_that_nobody_completes_is_made_anew() {
    let plan = after("b", |o, _| {
        let b = view(o, "b");
        b.not_streaming_since = Some(NOW - Duration::from_secs(20));
        let server = b.server.as_mut().unwrap();
        (server.streaming, server.received_lsn) = (false, Some(Lsn(101)));
    });
    assert_eq!(plan.actions, [Action::MakeReplica { from: NodeName::new("a"), discard: Discard::MoveAside }]);
    assert_eq!(
        plan.sentence,
        "has the first part of a record that a does not have; it is kept aside, and the node made anew"
    );
}

/// Its server tells the timeline on which the record began: that of the former primary.
#[test]
fn after_a_rewind_with_nothing_to_undo_part_of_a_record_is_seen() {
    let plan = |within: Option<u32>| {
        after("b", |o, _| {
            view(o, "a").server.as_mut().unwrap().timeline = 2;
            let b = view(o, "b");
            (b.not_streaming_since, b.within) = (Some(NOW - Duration::from_secs(20)), within);
            let server = b.server.as_mut().unwrap();
            (server.streaming, server.timeline, server.received_lsn) = (false, 1, Some(Lsn(101)));
        })
    };
    let from = NodeName::new("a");
    assert_eq!(plan(None).actions, [Action::Rewind { from: from.clone() }]);
    assert_eq!(plan(Some(2)).actions, [Action::MakeReplica { from: from.clone(), discard: Discard::MoveAside }]);
    // of another primary
    assert_eq!(plan(Some(1)).actions, [Action::Rewind { from }]);
}
