//! The rules over random observations, and the sentences of the usual cases.

use std::collections::BTreeMap;

use millrace_base::Micros;
use proptest::{option, prelude::*};

use super::*;
use crate::{
    model::{policy, slot_of},
    observed::{LogEnd, Part, Policy},
    plan::Change,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const OURS: u64 = 7;
pub(super) const NOW: Duration = Duration::from_secs(1000);
/// The term under way.
const TERM: u64 = 7;

fn data() -> impl Strategy<Value = DataState> {
    prop_oneof![
        2 => Just(DataState::Absent),
        6 => (prop_oneof![4 => Just(OURS), 1 => Just(8)], any::<bool>())
            .prop_map(|(system_id, standby)| DataState::Whole { system_id, standby }),
        1 => any::<bool>().prop_map(|standby| DataState::Past { standby }),
        2 => any::<bool>().prop_map(|standby| DataState::Damaged { why: "PG_VERSION is missing".into(), standby }),
        1 => Just(DataState::OtherVersion { found: "9.6".into() }),
        1 => Just(DataState::Foreign { path: "/data".into() }),
        1 => Just(DataState::Denied { why: "/data belongs to root".into() }),
    ]
}

fn process() -> impl Strategy<Value = ProcessState> {
    prop_oneof![
        3 => Just(ProcessState::None),
        1 => Just(ProcessState::Unadopted { pid: 9 }),
        4 => any::<bool>().prop_map(|ready| ProcessState::Running { pid: 9, ready }),
    ]
}

fn server() -> impl Strategy<Value = ServerState> {
    (any::<bool>(), prop_oneof![6 => Just(OURS), 1 => Just(8)], 1u32..3, 1u64..4, any::<bool>()).prop_map(
        |(in_recovery, system_id, timeline, lsn, streaming)| ServerState {
            in_recovery,
            system_id,
            timeline,
            lsn: Lsn(lsn),
            received_lsn: in_recovery.then_some(Lsn(lsn)),
            started_at: Micros(0),
            streaming: in_recovery && streaming,
            deaf: in_recovery && !streaming,
            receiver_slot: None,
            synchronous_standby_names: String::new(),
            pending_restart: Vec::new(),
        },
    )
}

fn failure() -> impl Strategy<Value = Failure> {
    let kinds = prop_oneof![
        Just(FailureKind::Damaged),
        Just(FailureKind::Crashed),
        Just(FailureKind::Rewind),
        Just(FailureKind::Other)
    ];
    (kinds, 990u64..1010, 1u32..9).prop_map(|(kind, not_before, next_try)| Failure {
        kind,
        what: "the server was killed by signal 9".into(),
        what_to_do: None,
        at: Duration::from_secs(990),
        not_before: Duration::from_secs(not_before),
        next_try,
    })
}

prop_compose! {
    fn node()(
        data in data(),
        was_primary in any::<bool>(),
        process in process(),
        server in option::weighted(0.8, server()),
        not_streaming_since in option::of((900u64..1000).prop_map(Duration::from_secs)),
        (silent_since, absent_since) in (option::of(since()), option::of(since())),
        (rogue, orphans, follows) in (option::weighted(0.1, Just(())), any::<bool>(), option::of(0usize..3)),
        heard_at in since(),
        priority in prop_oneof![1 => Just(0), 4 => Just(1), 1 => Just(2)],
        vote in option::weighted(0.6, prop_oneof![3 => Just(TERM), 1 => Just(TERM - 1)]),
        busy in option::weighted(0.15, Just(("is made from a base backup of a".to_owned(), Duration::from_secs(900)))),
        failure in option::weighted(0.3, failure()),
        (dying, disk) in (any::<bool>(), disks::disk()),
    ) -> NodeView {
        // a server answers only if its process runs and says that it is ready
        let server = server.filter(|_| matches!(process, ProcessState::Running { ready: true, .. }));
        let silent_since = silent_since.filter(|_| server.is_none());
        let may_write = process != ProcessState::None || orphans;
        NodeView {
            part: Part { priority, delayed: false }, data, was_primary, rogue: rogue.is_some(), restored: None, process, may_write, dying, disk, server, silent_since, not_streaming_since, within: None,
            heard_at, slots: None, absent_since, vote, follows: follows.map(|node| NodeName::new(NAMES[node])), busy, failure,
        }
    }
}

pub(super) fn since() -> impl Strategy<Value = Duration> {
    (990u64..=1000).prop_map(Duration::from_secs)
}

fn slot(name: &'static str) -> impl Strategy<Value = Slot> {
    let status = prop_oneof![Just("reserved"), Just("extended"), Just("lost")];
    (any::<bool>(), option::of(1u64..5), status).prop_map(move |(active, restart, status)| Slot {
        active,
        restart_lsn: restart.map(Lsn),
        wal_status: Some(status.into()),
        ..slot_of(&NodeName::new(name), Lsn(0))
    })
}

fn slots() -> impl Strategy<Value = Option<Vec<Slot>>> {
    option::weighted(
        0.8,
        (option::of(slot("b")), option::of(slot("c"))).prop_map(|(b, c)| b.into_iter().chain(c).collect()),
    )
}

fn office() -> impl Strategy<Value = Office> {
    prop_oneof![
        3 => Just(Office::Undivided),
        1 => Just(Office::Held),
        2 => (since(), any::<bool>()).prop_map(|(since, resigned)| Office::Vacant { since, resigned }),
        1 => Just(Office::Unknown),
    ]
}

pub(super) fn observed() -> impl Strategy<Value = Observed> {
    let lsn = || option::of((1u64..5).prop_map(Lsn));
    let seen = (any::<bool>(), lsn(), any::<bool>(), lsn());
    (proptest::collection::vec(node(), 3), slots(), seen, office()).prop_map(
        |(mut views, slots, (roles_ready, primary_lsn, arrived, handed_over), office)| {
            // whether another host's processes may write is known by the office alone
            if let (Office::Vacant { .. }, true, Some(primary)) = (office, arrived, views.first_mut()) {
                primary.may_write = false;
            }
            Observed {
                office,
                nodes: NAMES.iter().map(|name| NodeName::new(name)).zip(views).collect(),
                slots,
                roles_ready,
                primary_lsn,
                logical_slots: BTreeSet::new(),
                handed_over: handed_over.map(|lsn| LogEnd { lsn, timeline: 1 }),
                arrived,
            }
        },
    )
}

fn promise() -> impl Strategy<Value = Promise> {
    let members = proptest::collection::btree_set(prop_oneof![Just("b"), Just("c")].prop_map(NodeName::new), 0..3);
    (members, 0usize..3).prop_map(|(members, quorum)| Promise::new(members, quorum))
}

fn wish() -> impl Strategy<Value = Wish> {
    let to = || prop_oneof![Just("b"), Just("c")].prop_map(NodeName::new);
    prop_oneof![to().prop_map(|to| Wish::Switchover { to }), to().prop_map(|to| Wish::Failover { to })]
}

pub(super) fn intent() -> impl Strategy<Value = Intent> {
    let durability = prop_oneof![
        any::<bool>().prop_map(|strict| Durability::Quorum { quorum: 1, strict }),
        (0u64..3).prop_map(|loss_max| Durability::Asynchronous { loss_max }),
    ];
    let words = (any::<bool>(), any::<bool>(), option::weighted(0.2, wish()), durability);
    (any::<bool>(), option::weighted(0.8, Just(OURS)), promise(), words).prop_map(
        |(run, system_id, promise, (promoting, paused, wish, durability))| Intent {
            goal: if run { Goal::Run } else { Goal::Stop },
            primary: NodeName::new("a"),
            term: TERM,
            system_id,
            promoting,
            promise,
            paused,
            wish,
            said: Default::default(),
            restored: None,
            policy: Policy { durability, ..policy() },
        },
    )
}

fn standby(data: &DataState) -> bool {
    matches!(data, DataState::Whole { standby: true, .. } | DataState::Damaged { standby: true, .. })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_plan_breaks_a_promise(observed in observed(), intent in intent()) {
        let plan = decide(&observed, &intent, NOW);
        prop_assert_eq!(plan.nodes.len(), observed.nodes.len());
        let primary = &observed.nodes[&intent.primary];
        let allowed = matches!(observed.office, Office::Undivided | Office::Held);
        let vacant = matches!(observed.office, Office::Vacant { .. });
        match &plan.change {
            Some(Change::TakeOffice) => {
                prop_assert!(vacant && primary.busy.is_none() && intent.goal == Goal::Run);
            }
            // who leaves starts nothing
            Some(Change::Resign(_)) => {
                prop_assert!(observed.office == Office::Held && !primary.may_write);
                prop_assert!(plan.nodes[&intent.primary].actions.is_empty());
            }
            Some(Change::Elect { .. }) => prop_assert!(vacant || observed.office == Office::Undivided),
            _ => {}
        }
        for (name, planned) in &plan.nodes {
            let view = &observed.nodes[name];
            let is_primary = *name == intent.primary;
            prop_assert!(!planned.sentence.is_empty() && !planned.sentence.contains('\n'));
            // one thing at a time, and nothing besides a step that is under way
            prop_assert!(planned.actions.iter().filter(|action| action.is_exclusive()).count() <= 1);
            prop_assert!(view.busy.is_none() || planned.actions.is_empty());
            // what was before a restore is stopped and kept, and takes part in nothing
            let past = matches!(view.data, DataState::Past { .. });
            let aside = |action: &Action| match action {
                Action::Adopt | Action::Fence | Action::Stop(_) => true,
                Action::MakeReplica { discard, .. } => *discard == Discard::MoveAside,
                _ => false,
            };
            prop_assert!(!past || planned.actions.iter().all(aside));
            for action in &planned.actions {
                match action {
                    Action::Adopt => {
                        let unadopted = matches!(view.process, ProcessState::Unadopted { .. });
                        prop_assert!(unadopted);
                    }
                    Action::Initdb => {
                        prop_assert!(is_primary && intent.goal == Goal::Run && intent.system_id.is_none());
                        prop_assert_eq!(&view.data, &DataState::Absent);
                        prop_assert_eq!(&view.process, &ProcessState::None);
                        prop_assert!(allowed);
                    }
                    Action::Start { from } => {
                        prop_assert_eq!(intent.goal, Goal::Run);
                        prop_assert_eq!(&view.process, &ProcessState::None);
                        let turned_away = view.vote == Some(intent.term);
                        prop_assert_eq!(from.is_none(), is_primary || turned_away);
                        prop_assert!(!is_primary || allowed);
                        // a server that would accept writes is never started but as the primary
                        prop_assert!(standby(&view.data) != is_primary || is_primary && intent.promoting);
                        prop_assert!(view.failure.as_ref().is_none_or(|failure| failure.not_before <= NOW));
                    }
                    Action::Stop(_) if intent.goal == Goal::Stop => {
                        let primary_up = primary.process != ProcessState::None || primary.busy.is_some();
                        prop_assert!(is_primary || !primary_up || observed.office != Office::Undivided);
                    }
                    // the one thing that is stopped unasked is a second primary
                    Action::Stop(_) => {
                        prop_assert!(!is_primary && view.server.as_ref().is_some_and(|server| !server.in_recovery));
                    }
                    Action::MakeReplica { from, discard } => {
                        prop_assert!(!is_primary && from == &intent.primary && intent.goal == Goal::Run);
                        prop_assert!(primary.server.as_ref().is_some_and(|server| !server.in_recovery));
                        prop_assert!(!plan.nodes[from].actions.iter().any(Action::is_exclusive));
                        if *discard == Discard::Delete {
                            prop_assert!(standby(&view.data) && !view.was_primary);
                        }
                        if *discard == Discard::Nothing {
                            prop_assert_eq!(&view.data, &DataState::Absent);
                        }
                        if view.process == ProcessState::None {
                            let readable = matches!(
                                view.data,
                                DataState::Absent
                                    | DataState::Whole { .. }
                                    | DataState::Past { .. }
                                    | DataState::Damaged { .. }
                            );
                            prop_assert!(readable, "what is not ours is not touched");
                        }
                    }
                    Action::Fence if is_primary => {
                        prop_assert!(view.may_write && (intent.goal == Goal::Run || !allowed));
                    }
                    Action::Fence if past => prop_assert!(view.may_write),
                    Action::Fence => {
                        let writes = view.server.as_ref().is_some_and(|server| !server.in_recovery);
                        // one that is silent writes when it wakes up
                        let of_primary = matches!(view.data, DataState::Whole { standby: false, .. });
                        prop_assert!((writes || of_primary) && view.was_primary);
                        prop_assert!(observed.office != Office::Undivided);
                    }
                    Action::Vote { term } => {
                        // again, if the server has not done it
                        let again = view.vote == Some(*term);
                        let deaf = view.server.as_ref().is_some_and(|server| server.deaf);
                        prop_assert!(!is_primary && vacant && *term == intent.term && !(again && deaf));
                        // the primary counts on those that it has just sent log to
                        let resigned = matches!(observed.office, Office::Vacant { resigned: true, .. });
                        prop_assert!(again || resigned || NOW - view.heard_at >= intent.policy.hold);
                    }
                    Action::LetGo => {
                        prop_assert!(!is_primary && vacant && view.follows.is_some() && view.vote != Some(intent.term));
                    }
                    Action::CopySlots { from } => prop_assert!(!is_primary && from == &intent.primary),
                    Action::HandOver => {
                        let wished = matches!(intent.wish, Some(Wish::Switchover { .. }));
                        prop_assert!(is_primary && wished);
                    }
                    Action::Promote => {
                        prop_assert!(is_primary && intent.promoting && intent.goal == Goal::Run && allowed);
                        prop_assert!(view.server.as_ref().is_some_and(|server| server.in_recovery));
                    }
                    Action::Follow { from } => {
                        prop_assert!(view.vote != Some(intent.term), "who has turned away does not turn back");
                        prop_assert!(!is_primary && from == &intent.primary);
                        prop_assert!(primary.server.as_ref().is_some_and(|server| !server.in_recovery));
                    }
                    Action::Rewind { from } => {
                        prop_assert!(!is_primary && from == &intent.primary && intent.goal == Goal::Run);
                        prop_assert!(!view.rogue && !intent.promoting);
                        prop_assert!(primary.server.as_ref().is_some_and(|server| !server.in_recovery));
                    }
                    // the record never says more than the server has been told
                    Action::SetPromise(promise) => prop_assert!(is_primary && intent.promise.follows_from(promise)),
                    Action::EnsureRoles => prop_assert!(is_primary && !observed.roles_ready),
                    Action::CreateSlot { replica } => {
                        prop_assert!(is_primary && replica != name);
                        let made_anew =
                            plan.nodes[replica].actions.iter().any(|a| matches!(a, Action::MakeReplica { .. }));
                        prop_assert!(!made_anew || observed.nodes[replica].data != DataState::Absent);
                    }
                }
            }
        }
    }

    /// Who is elected surely has everything, and nobody can write to the old primary's data any more.
    #[test]
    fn elections_are_safe(observed in observed(), intent in intent()) {
        let Some(Change::Elect { node, .. }) = decide(&observed, &intent, NOW).change else { return Ok(()) };
        let old = &observed.nodes[&intent.primary];
        let vacant = matches!(observed.office, Office::Vacant { .. });
        prop_assert!(!old.may_write && (vacant || old.process == ProcessState::None && old.busy.is_none()));
        prop_assert!(node != intent.primary && intent.goal == Goal::Run);
        let past = matches!(observed.nodes[&node].data, DataState::Past { .. });
        prop_assert!(!past);
        let forced = matches!(intent.wish, Some(Wish::Failover { .. }));
        prop_assert!(forced || observed.nodes[&node].part.priority > 0);
        let position = |name: &NodeName| {
            let view = &observed.nodes[name];
            let server = view.server.as_ref().filter(|server| server.in_recovery)?;
            let whole = observed.handed_over.is_some_and(|end| end.is_within(server.received_lsn.unwrap_or(server.lsn), server.timeline));
            let forced = matches!(intent.wish, Some(Wish::Failover { .. }));
            let settled = server.deaf && view.vote == Some(intent.term);
            if vacant && !(whole || forced || settled) {
                return None;
            }
            (observed.nodes[name].busy.is_none() && intent.system_id == Some(server.system_id)).then_some(server.lsn)
        };
        let elected = position(&node);
        prop_assert!(elected.is_some());
        if matches!(intent.wish, Some(Wish::Failover { .. })) {
            return Ok(());
        }
        prop_assert!(intent.wish.is_some() || !intent.paused);
        if let (Some(_), Some(end)) = (&intent.wish, observed.handed_over) {
            prop_assert!(elected > Some(end.lsn), "{node} has not received the end of the log");
            return Ok(());
        }
        let timeline = observed.nodes[&node].server.as_ref().map_or(0, |server| server.timeline);
        if vacant && observed.handed_over.is_some_and(|end| elected.is_some_and(|lsn| end.is_within(lsn, timeline))) {
            return Ok(());
        }
        // any commit that was acknowledged is on `quorum` members: however it was spread, the elected one has it
        let begun = intent.promoting && !matches!(old.data, DataState::Whole { standby: true, .. });
        let (members, quorum) = (&intent.promise.members, if begun { 0 } else { intent.promise.quorum });
        let ahead = members.iter().filter(|member| position(member).is_none_or(|other| Some(other) > elected)).count();
        prop_assert!(quorum == 0 || ahead < quorum, "{ahead} members may have what {node} has not");
        if quorum == 0 {
            let Durability::Asynchronous { loss_max } = intent.policy.durability else {
                return Err(TestCaseError::fail("nothing was promised, and someone was elected"));
            };
            prop_assert!(observed.primary_lsn.is_none_or(|last| elected.is_some_and(|e| last.bytes_since(e) <= loss_max)));
        }
    }

    #[test]
    fn the_primary_is_chosen_from_one_possibility_only(observed in observed()) {
        let first = NodeName::new("a");
        let holders: Vec<_> = observed
            .nodes
            .iter()
            .filter(|(_, view)| !standby(&view.data) && matches!(
                view.data,
                DataState::Whole { .. } | DataState::Damaged { .. } | DataState::OtherVersion { .. }
            ))
            .map(|(name, _)| name)
            .collect();
        match choose_primary(&observed, None, &first) {
            Ok(chosen) if holders.is_empty() => {
                prop_assert_eq!(&chosen, &first);
                prop_assert!(!observed.nodes.values().any(|view| standby(&view.data)));
            }
            Ok(chosen) => prop_assert_eq!(vec![&chosen], holders),
            Err(ClusterError::TwoPrimaries(_)) => prop_assert!(holders.len() > 1),
            Err(ClusterError::NoPrimary(_)) => prop_assert!(holders.is_empty()),
            Err(other) => prop_assert!(false, "{other}"),
        }
        prop_assert_eq!(choose_primary(&observed, Some(&NodeName::new("c")), &first).ok(), Some(NodeName::new("c")));
        prop_assert!(choose_primary(&observed, Some(&NodeName::new("z")), &first).is_err());
    }
}

fn healthy(is_primary: bool) -> NodeView {
    NodeView {
        data: DataState::Whole { system_id: OURS, standby: !is_primary },
        was_primary: is_primary,
        rogue: false,
        restored: None,
        heard_at: Duration::ZERO,
        part: Default::default(),
        process: ProcessState::Running { pid: 9, ready: true },
        may_write: true,
        dying: false,
        disk: crate::DiskView::default(),
        server: Some(ServerState {
            in_recovery: !is_primary,
            system_id: OURS,
            timeline: 1,
            lsn: Lsn(if is_primary { 100 } else { 90 }),
            received_lsn: (!is_primary).then_some(Lsn(90)),
            started_at: Micros(0),
            streaming: !is_primary,
            deaf: false,
            receiver_slot: None,
            synchronous_standby_names: if is_primary { both().setting() } else { String::new() },
            pending_restart: Vec::new(),
        }),
        slots: None,
        silent_since: None,
        not_streaming_since: None,
        within: None,
        absent_since: None,
        vote: None,
        follows: (!is_primary).then(|| NodeName::new("a")),
        busy: None,
        failure: None,
    }
}

fn both() -> Promise {
    Promise::new([NodeName::new("b"), NodeName::new("c")].into(), 1)
}

pub(super) fn well() -> (Observed, Intent) {
    let nodes: BTreeMap<_, _> = NAMES.iter().map(|name| (NodeName::new(name), healthy(*name == "a"))).collect();
    let slot = |name: &str| slot_of(&NodeName::new(name), Lsn(90));
    let observed = Observed {
        nodes,
        slots: Some(vec![slot("b"), slot("c")]),
        office: Office::Undivided,
        roles_ready: true,
        primary_lsn: Some(Lsn(100)),
        logical_slots: BTreeSet::new(),
        handed_over: None,
        arrived: true,
    };
    let intent = Intent {
        goal: Goal::Run,
        primary: NodeName::new("a"),
        system_id: Some(OURS),
        term: 1,
        promoting: false,
        promise: both(),
        paused: false,
        wish: None,
        said: Default::default(),
        restored: None,
        policy: policy(),
    };
    (observed, intent)
}

/// What becomes of node `name` when everything is well but for `change`.
pub(super) fn after(name: &str, change: impl FnOnce(&mut Observed, &mut Intent)) -> NodePlan {
    let (mut observed, mut intent) = well();
    change(&mut observed, &mut intent);
    decide(&observed, &intent, NOW).nodes.remove(&NodeName::new(name)).unwrap()
}

pub(super) fn view<'a>(observed: &'a mut Observed, name: &str) -> &'a mut NodeView {
    observed.nodes.get_mut(&NodeName::new(name)).unwrap()
}

pub(super) fn down(view: &mut NodeView) {
    view.may_write = false;
    view.process = ProcessState::None;
    view.server = None;
}

#[test]
fn a_healthy_cluster_is_left_alone() {
    let (observed, intent) = well();
    let plan = decide(&observed, &intent, NOW);
    assert!(plan.nodes.values().all(|node| node.actions.is_empty() && node.trouble.is_none()));
    assert_eq!(plan.nodes[&NodeName::new("a")].sentence, "accepts writes");
    assert_eq!(plan.nodes[&NodeName::new("b")].sentence, "streams from a, 10 bytes behind");
}

#[test]
fn a_crash_is_waited_out_then_restarted() {
    let crashed = |not_before| {
        after("a", |observed, intent| {
            // nobody else surely has everything
            intent.promise = Promise::none();
            let view = view(observed, "a");
            down(view);
            view.failure = Some(Failure {
                kind: FailureKind::Crashed,
                what: "the server was killed by signal 9".into(),
                what_to_do: None,
                at: NOW - Duration::from_secs(2),
                not_before,
                next_try: 2,
            });
        })
    };
    let waiting = crashed(NOW + Duration::from_millis(1600));
    assert_eq!(waiting.sentence, "the server was killed by signal 9 2 s ago, try 2 in 1.6 s");
    assert!(waiting.actions.is_empty());
    assert_eq!(crashed(NOW).actions, [Action::Start { from: None }]);
}

#[test]
fn a_lost_primary_is_fenced_then_replaced() {
    let lost = |may_write: bool, change: fn(&mut Observed, &mut Intent)| {
        let (mut observed, mut intent) = well();
        for name in ["b", "c"] {
            view(&mut observed, name).server.as_mut().unwrap().streaming = false;
        }
        let a = view(&mut observed, "a");
        down(a);
        a.may_write = may_write;
        a.failure = Some(Failure {
            kind: FailureKind::Crashed,
            what: "the server was killed by signal 9".into(),
            what_to_do: None,
            at: NOW,
            not_before: NOW + Duration::from_secs(1),
            next_try: 1,
        });
        change(&mut observed, &mut intent);
        let plan = decide(&observed, &intent, NOW);
        (plan.change, plan.nodes[&intent.primary].clone())
    };
    let (change, a) = lost(true, |_, _| ());
    assert_eq!((change, &a.actions[..]), (None, &[Action::Fence][..]));
    assert_eq!(a.sentence, "the server was killed by signal 9; is killed, so that it writes no more");
    let elected = |change: fn(&mut Observed, &mut Intent)| match lost(false, change) {
        (Some(Change::Elect { node, .. }), plan) => (node.to_string(), plan.sentence),
        (change, plan) => (format!("{change:?}"), plan.sentence),
    };
    let said = "the server was killed by signal 9; b becomes the primary";
    assert_eq!(elected(|_, _| ()), ("b".into(), said.into()));
    // capture could not go on there
    let slotless = |observed: &mut Observed, _: &mut Intent| {
        observed.logical_slots.insert("capture".into());
    };
    let (nobody, why) = elected(slotless);
    assert!(nobody == "None" && why.contains("does not have the slots yet"), "{why}");
    // started again: what it has beyond what it has replayed is not known
    let restarted = |observed: &mut Observed, _: &mut Intent| {
        view(observed, "b").server.as_mut().unwrap().received_lsn = None;
    };
    assert_eq!(elected(restarted).0, "None");
    let ahead = |observed: &mut Observed, _: &mut Intent| {
        view(observed, "c").server.as_mut().unwrap().received_lsn = Some(Lsn(91));
    };
    assert_eq!(elected(ahead).0, "c");
    let one_away = |observed: &mut Observed, _: &mut Intent| view(observed, "c").server = None;
    let why = "no other node can take its place: 1 more of b, c must answer to be sure that no commit is lost";
    assert_eq!(
        elected(one_away),
        ("None".into(), format!("the server was killed by signal 9 0 s ago, try 1 in 1.0 s; {why}"))
    );
    assert_eq!(elected(|_, intent| intent.paused = true).0, "None");
    let forced = |observed: &mut Observed, intent: &mut Intent| {
        view(observed, "c").server = None;
        intent.wish = Some(Wish::Failover { to: NodeName::new("b") });
    };
    assert_eq!(elected(forced).0, "b");
}

#[test]
fn a_frozen_primary_is_killed_after_a_while() {
    let silent = |seconds| {
        after("a", |observed, _| {
            let view = view(observed, "a");
            view.server = None;
            view.silent_since = Some(NOW - Duration::from_millis(seconds));
        })
    };
    assert_eq!(silent(2_900).actions, []);
    assert_eq!(silent(3_000).actions, [Action::Fence]);
    assert_eq!(silent(3_000).sentence, "has not answered for 3.0 s; is killed, so that it writes no more");
}

#[test]
fn replicas_stop_after_the_primary_has_shipped_everything() {
    let stop = |observed: &mut Observed, intent: &mut Intent| {
        intent.goal = Goal::Stop;
        view(observed, "c").busy = None;
    };
    assert_eq!(after("a", stop).actions, [Action::Stop(StopMode::Fast)]);
    assert_eq!(after("b", stop).sentence, "receives the last log of a before it stops");
    let later = after("b", |observed, intent| {
        stop(observed, intent);
        down(view(observed, "a"));
    });
    assert_eq!(later.actions, [Action::Stop(StopMode::Fast)]);
}

#[test]
fn a_replica_that_cannot_follow_is_rebuilt() {
    let from = NodeName::new("a");
    let lost = after("b", |observed, _| {
        view(observed, "b").server.as_mut().unwrap().streaming = false;
        observed.slots.as_mut().unwrap()[0].wal_status = Some("lost".into());
    });
    assert_eq!(lost.actions, [Action::MakeReplica { from: from.clone(), discard: Discard::Delete }]);
    let behind = |seconds| {
        after("b", |observed, _| {
            let view = view(observed, "b");
            view.server.as_mut().unwrap().streaming = false;
            view.not_streaming_since = Some(NOW - Duration::from_secs(seconds));
            observed.slots.as_mut().unwrap()[0].restart_lsn = Some(Lsn(95));
        })
    };
    assert_eq!(behind(14).sentence, "connects to a");
    assert_eq!(behind(15).actions, [Action::MakeReplica { from: from.clone(), discard: Discard::Delete }]);
    let ahead = after("b", |observed, _| {
        let view = view(observed, "b");
        let server = view.server.as_mut().unwrap();
        (server.streaming, server.lsn) = (false, Lsn(101));
        view.not_streaming_since = Some(NOW - Duration::from_secs(15));
    });
    assert_eq!(ahead.actions, [Action::MakeReplica { from, discard: Discard::MoveAside }]);
    assert_eq!(ahead.sentence, "holds log that a does not; it is kept aside, and the node made anew");
}

#[test]
fn a_second_primary_is_stopped_at_once() {
    let plan = after("b", |observed, _| {
        let server = view(observed, "b").server.as_mut().unwrap();
        (server.in_recovery, server.streaming, server.timeline) = (false, false, 2);
    });
    assert_eq!(plan.actions, [Action::Stop(StopMode::Immediate)]);
    assert_eq!(plan.trouble.unwrap().severity, Severity::Critical);
}

#[test]
fn a_missing_slot_is_made_again() {
    let plan = after("a", |observed, _| {
        observed.slots.as_mut().unwrap().remove(1);
    });
    assert_eq!(plan.actions, [Action::CreateSlot { replica: NodeName::new("c") }]);
}

#[test]
fn lost_data_of_a_primary_is_never_replaced() {
    for data in [
        DataState::Absent,
        DataState::Damaged { why: "PG_VERSION is missing".into(), standby: false },
        DataState::Whole { system_id: 8, standby: false },
        DataState::Whole { system_id: OURS, standby: true },
    ] {
        let plan = after("a", |observed, intent| {
            // nobody else surely has everything
            intent.promise = Promise::none();
            let view = view(observed, "a");
            down(view);
            view.data = data.clone();
        });
        assert!(plan.actions.is_empty(), "{data:?}: {plan:?}");
        assert_eq!(plan.trouble.unwrap().severity, Severity::Critical);
    }
}
