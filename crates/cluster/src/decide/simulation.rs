//! The rules against a small model of a cluster: whatever happens to it for a while, it becomes
//! well again once it is left in peace, and on the way the primary's data is never touched and
//! never do two servers go on accepting writes.

use std::collections::{BTreeMap, BTreeSet};

use millrace_base::Micros;
use proptest::prelude::*;

use super::*;
use crate::{
    model::{policy, slot_of},
    observed::Policy,
};

const OURS: u64 = 7;
const STEP: Duration = Duration::from_secs(1);
/// Steps within which an undisturbed cluster must be well.
const PEACE: usize = 80;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill(usize),
    /// A replica's files, wholly, partly with or without `standby.signal`, or that file alone.
    Damage(usize, u8),
    DropSlot(usize),
    /// The slot is given up: what the replica has not received is gone.
    LoseSlot(usize),
    Promote(usize),
    /// The supervisor is killed and started again; steps under way end with it.
    Restart,
    Nothing,
}

fn fault() -> impl Strategy<Value = Fault> {
    let replica = 1usize..3;
    prop_oneof![
        (0usize..3).prop_map(Fault::Kill),
        (replica.clone(), 0u8..4).prop_map(|(node, how)| Fault::Damage(node, how)),
        replica.clone().prop_map(Fault::DropSlot),
        replica.clone().prop_map(Fault::LoseSlot),
        replica.prop_map(Fault::Promote),
        Just(Fault::Restart),
        Just(Fault::Nothing),
    ]
}

#[derive(Debug)]
struct Node {
    data: DataState,
    was_primary: bool,
    process: ProcessState,
    promoted: bool,
    /// What it still needs is gone from the primary.
    left_behind: bool,
    streaming: bool,
    not_streaming_since: Option<Duration>,
    /// A step under way and when it ends.
    job: Option<(Action, Duration)>,
    failure: Option<Failure>,
}

struct World {
    now: Duration,
    nodes: BTreeMap<NodeName, Node>,
    /// Slots on the primary that exist; those given up.
    slots: BTreeSet<NodeName>,
    lost: BTreeSet<NodeName>,
    roles_ready: bool,
    intent: Intent,
}

impl World {
    fn new() -> Self {
        let empty = || Node {
            data: DataState::Absent,
            was_primary: false,
            process: ProcessState::None,
            promoted: false,
            left_behind: false,
            streaming: false,
            not_streaming_since: None,
            job: None,
            failure: None,
        };
        Self {
            now: Duration::from_secs(1),
            nodes: ["a", "b", "c"].iter().map(|name| (NodeName::new(name), empty())).collect(),
            slots: BTreeSet::new(),
            lost: BTreeSet::new(),
            roles_ready: false,
            intent: Intent {
                goal: Goal::Run,
                primary: NodeName::new("a"),
                system_id: None,
                term: 1,
                promoting: false,
                promise: Promise::none(),
                paused: false,
                wish: None,
                said: Default::default(),
                restored: None,
                // elections are simulated elsewhere
                policy: Policy { failover: false, durability: Durability::Asynchronous { loss_max: 0 }, ..policy() },
            },
        }
    }

    fn name(node: usize) -> NodeName {
        NodeName::new(["a", "b", "c"][node])
    }

    fn primary_serves(&self) -> bool {
        let primary = &self.nodes[&self.intent.primary];
        primary.job.is_none() && matches!(primary.process, ProcessState::Running { .. })
    }

    fn observe(&self) -> Observed {
        let nodes = self.nodes.iter().map(|(name, node)| {
            let is_primary = *name == self.intent.primary;
            let answers = node.job.is_none() && matches!(node.process, ProcessState::Running { .. });
            let server = answers.then(|| ServerState {
                in_recovery: !is_primary && !node.promoted,
                system_id: OURS,
                timeline: if node.promoted { 2 } else { 1 },
                lsn: Lsn(if is_primary { 100 } else { 95 }),
                received_lsn: None,
                started_at: Micros(0),
                streaming: node.streaming,
                deaf: false,
                receiver_slot: None,
                synchronous_standby_names: String::new(),
                pending_restart: Vec::new(),
            });
            let view = NodeView {
                data: node.data.clone(),
                was_primary: node.was_primary,
                rogue: node.promoted,
                restored: None,
                heard_at: Duration::ZERO,
                part: Default::default(),
                process: node.process.clone(),
                may_write: node.process != ProcessState::None,
                dying: false,
                disk: crate::DiskView::default(),
                server,
                slots: None,
                silent_since: None,
                absent_since: None,
                vote: None,
                follows: Some(self.intent.primary.clone()),
                not_streaming_since: node.not_streaming_since,
                within: None,
                busy: node.job.as_ref().map(|(action, since)| (format!("{action:?}"), *since)),
                failure: node.failure.clone(),
            };
            (name.clone(), view)
        });
        let slot = |name: &NodeName| Slot {
            active: self.nodes[name].streaming,
            wal_status: Some(if self.lost.contains(name) { "lost" } else { "reserved" }.into()),
            // it keeps log from its making on: less than one that was left behind needs
            ..slot_of(name, Lsn(if self.nodes[name].left_behind { 98 } else { 90 }))
        };
        Observed {
            nodes: nodes.collect(),
            slots: self.primary_serves().then(|| self.slots.iter().map(slot).collect()),
            office: Office::Undivided,
            roles_ready: self.roles_ready,
            primary_lsn: Some(Lsn(100)),
            logical_slots: BTreeSet::new(),
            handed_over: None,
            arrived: true,
        }
    }

    fn strike(&mut self, fault: Fault) {
        let crashed = |now: Duration| Failure {
            kind: FailureKind::Crashed,
            what: "the server was killed by signal 9".into(),
            what_to_do: None,
            at: now,
            not_before: now + STEP,
            next_try: 1,
        };
        match fault {
            Fault::Kill(node) => {
                let node = self.nodes.get_mut(&Self::name(node)).unwrap();
                if matches!(node.process, ProcessState::Running { .. }) && node.job.is_none() {
                    node.process = ProcessState::None;
                    node.failure = Some(crashed(self.now));
                }
            }
            Fault::Damage(node, how) => {
                let node = self.nodes.get_mut(&Self::name(node)).unwrap();
                if node.data != DataState::Absent && node.job.is_none() {
                    node.data = match how {
                        0 => DataState::Absent,
                        1 => DataState::Damaged { why: "PG_VERSION is missing".into(), standby: !node.promoted },
                        2 => DataState::Damaged { why: "PG_VERSION is missing".into(), standby: false },
                        _ => DataState::Whole { system_id: OURS, standby: false },
                    };
                    node.process = ProcessState::None;
                }
            }
            Fault::DropSlot(node) => {
                self.slots.remove(&Self::name(node));
                self.lost.remove(&Self::name(node));
            }
            Fault::LoseSlot(node) => {
                let name = Self::name(node);
                if self.slots.contains(&name) && self.nodes[&name].job.is_none() {
                    self.nodes.get_mut(&name).unwrap().left_behind = true;
                    self.lost.insert(name);
                }
            }
            Fault::Promote(node) => {
                let node = self.nodes.get_mut(&Self::name(node)).unwrap();
                if matches!(node.process, ProcessState::Running { .. }) && node.job.is_none() {
                    node.promoted = true;
                    node.streaming = false;
                    node.data = DataState::Whole { system_id: OURS, standby: false };
                }
            }
            Fault::Restart => {
                self.roles_ready = false;
                for node in self.nodes.values_mut() {
                    node.failure = None;
                    if let Some((Action::MakeReplica { .. }, _)) = node.job.take() {
                        node.process = ProcessState::None;
                        node.data = DataState::Absent;
                    }
                    if let ProcessState::Running { pid, .. } = node.process {
                        node.process = ProcessState::Unadopted { pid };
                    }
                }
            }
            Fault::Nothing => {}
        }
    }

    fn step(&mut self) {
        let plan = decide(&self.observe(), &self.intent, self.now);
        for (name, planned) in plan.nodes {
            for action in planned.actions {
                self.begin(&name, action);
            }
        }
        self.now += STEP;
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            self.finish(&name);
        }
        self.flow();
        // a promoted replica may have been stopped by now, never may another one run beside it
        let writers = self.nodes.iter().filter(|(name, node)| {
            let running = matches!(node.process, ProcessState::Running { .. }) && node.job.is_none();
            running && (**name == self.intent.primary || node.promoted)
        });
        assert!(writers.count() <= 1, "two servers accept writes after a step");
    }

    fn begin(&mut self, name: &NodeName, action: Action) {
        let until = self.now + STEP * 2;
        let running = ProcessState::Running { pid: 9, ready: true };
        let node = self.nodes.get_mut(name).unwrap();
        match action {
            Action::Adopt | Action::Start { .. } => node.process = running,
            Action::Stop(_) => {
                node.process = ProcessState::None;
                node.was_primary = true;
            }
            Action::EnsureRoles => self.roles_ready = true,
            Action::CreateSlot { replica } => {
                self.slots.insert(replica);
            }
            Action::MakeReplica { discard, .. } => {
                if discard == Discard::Delete {
                    assert!(!node.promoted && !node.was_primary);
                }
                // its slot is made anew: the old one may be gone or be given up
                self.slots.insert(name.clone());
                self.lost.remove(name);
                node.process = ProcessState::None;
                node.data = DataState::Absent;
                node.job = Some((Action::MakeReplica { from: self.intent.primary.clone(), discard }, until));
            }
            Action::Initdb => node.job = Some((Action::Initdb, until)),
            // as if its data had once been a primary's: it is brought back in place
            Action::Rewind { from } => {
                assert!(!node.promoted, "what someone wrote there is kept");
                self.slots.insert(name.clone());
                node.process = ProcessState::None;
                node.job = Some((Action::Rewind { from }, until));
            }
            other => panic!("{other:?} without an election"),
        }
    }

    fn finish(&mut self, name: &NodeName) {
        let node = self.nodes.get_mut(name).unwrap();
        let Some((action, _)) = node.job.take_if(|(_, until)| *until <= self.now) else { return };
        if action == Action::Initdb {
            node.data = DataState::Whole { system_id: OURS, standby: false };
            node.was_primary = true;
            self.intent.system_id = Some(OURS);
        } else {
            node.data = DataState::Whole { system_id: OURS, standby: true };
            (node.promoted, node.left_behind, node.was_primary) = (false, false, false);
            node.failure = None;
        }
    }

    /// Replicas that can receive log do.
    fn flow(&mut self) {
        let serves = self.primary_serves();
        for (name, node) in &mut self.nodes {
            let runs = matches!(node.process, ProcessState::Running { .. });
            let slot = self.slots.contains(name) && !self.lost.contains(name);
            node.streaming =
                serves && runs && slot && !node.left_behind && !node.promoted && *name != self.intent.primary;
            let waits = runs && !node.streaming && *name != self.intent.primary;
            node.not_streaming_since = waits.then(|| node.not_streaming_since.unwrap_or(self.now));
        }
    }

    fn is_well(&self) -> bool {
        self.primary_serves() && self.nodes.iter().all(|(name, node)| *name == self.intent.primary || node.streaming)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn peace_heals(faults in proptest::collection::vec(fault(), 0..60)) {
        let mut world = World::new();
        for fault in faults {
            world.strike(fault);
            world.step();
            let primary = &world.nodes[&world.intent.primary];
            prop_assert!(
                world.intent.system_id.is_none()
                    || primary.data == DataState::Whole { system_id: OURS, standby: false },
                "the primary's data was touched"
            );
        }
        for _ in 0..PEACE {
            world.step();
        }
        prop_assert!(world.is_well(), "{:#?}", world.nodes);
        let plan = decide(&world.observe(), &world.intent, world.now);
        prop_assert!(plan.nodes.values().all(|node| node.actions.is_empty() && node.trouble.is_none()), "{plan:#?}");
    }
}
