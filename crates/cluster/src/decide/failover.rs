//! Failover against a model of servers with logs, commits and clients: whatever dies, hangs or wakes up, and
//! whenever the supervisor is killed, no acknowledged commit is lost and never do two servers accept writes; left in
//! peace, there is a primary, and everyone follows it.

use std::collections::BTreeMap;

use millrace_base::Micros;

use super::*;
use crate::{
    observed::{LogEnd, Policy},
    plan::Change,
};

const TICK: Duration = Duration::from_millis(100);
/// Ticks with faults, and those in peace afterwards.
const TROUBLE: u32 = 300;
const PEACE: u32 = 900;
const NAMES: [&str; 3] = ["a", "b", "c"];
const OURS: u64 = 7;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40).unwrap() % n
    }
}

/// One server with its disk, and what the supervisor remembers of it. A log is the numbers of its commits.
struct Server {
    log: Vec<u32>,
    timeline: u32,
    exists: bool,
    standby: bool,
    up: bool,
    hangs: bool,
    follows: Option<NodeName>,
    /// What its processes really wait for; a new setting takes a while to be in force.
    waits_for: Promise,
    set: Option<(Promise, Duration)>,
    job: Option<(Action, Duration)>,
    /// The supervisor's memory.
    told: Promise,
    silent_since: Option<Duration>,
    absent_since: Option<Duration>,
    not_streaming_since: Option<Duration>,
    failure: Option<Failure>,
    /// The setting as it was seen, since when, and the end of the log once it was in force.
    seen: Option<(String, Duration, Option<usize>)>,
}

impl Server {
    fn serves(&self) -> bool {
        self.up && !self.hangs && self.job.is_none()
    }

    /// The session that is asked has taken the setting before the rest of the server.
    fn setting(&self) -> String {
        self.set.as_ref().map_or(&self.waits_for, |(promise, _)| promise).setting()
    }

    fn end(&self) -> Lsn {
        Lsn(self.log.len() as u64)
    }
}

struct World {
    random: Random,
    now: Duration,
    servers: BTreeMap<NodeName, Server>,
    intent: Intent,
    slots: BTreeSet<NodeName>,
    primary_lsn: Option<Lsn>,
    handed_over: Option<LogEnd>,
    /// Written on some primary and not yet acknowledged: who wrote it, its place in the log, its number.
    waiting: Vec<(NodeName, usize, u32)>,
    acknowledged: BTreeSet<u32>,
    commits: u32,
    elections: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let primary = NodeName::new("a");
        let server = |name: &&str| {
            let standby = *name != "a";
            let server = Server {
                log: vec![0],
                timeline: 1,
                exists: true,
                standby,
                up: true,
                hangs: false,
                follows: standby.then(|| primary.clone()),
                waits_for: Promise::none(),
                set: None,
                job: None,
                told: Promise::none(),
                silent_since: None,
                absent_since: Some(Duration::ZERO),
                not_streaming_since: None,
                failure: None,
                seen: None,
            };
            (NodeName::new(name), server)
        };
        let strict = seed.is_multiple_of(3);
        Self {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: Duration::from_secs(100),
            servers: NAMES.iter().map(server).collect(),
            intent: Intent {
                goal: Goal::Run,
                primary: primary.clone(),
                system_id: Some(OURS),
                term: 1,
                promoting: false,
                promise: Promise::none(),
                paused: false,
                wish: None,
                policy: Policy {
                    failover: true,
                    durability: Durability::Quorum { quorum: 1, strict },
                    not_streaming_max: Duration::from_secs(15),
                    silent_max: Duration::from_secs(3),
                    start_max: Duration::from_secs(60),
                    absent_max: Duration::from_secs(5),
                    hold: Duration::from_millis(1500),
                },
            },
            slots: ["b", "c"].into_iter().map(NodeName::new).collect(),
            primary_lsn: None,
            handed_over: None,
            waiting: Vec::new(),
            acknowledged: BTreeSet::new(),
            commits: 0,
            elections: 0,
        }
    }

    /// Whether a server receives the log of the one that it follows now. A sender lives as long as its server does,
    /// whatever the supervisor does with it.
    fn streams(&self, name: &NodeName) -> bool {
        let server = &self.servers[name];
        let Some(from) = server.follows.as_ref().filter(|_| server.standby && server.serves()) else { return false };
        let source = &self.servers[from];
        let sends = source.up && !source.hangs && !source.standby && *from == self.intent.primary;
        sends && self.slots.contains(name) && source.log.starts_with(&server.log)
    }

    fn failure(&mut self) -> Failure {
        Failure {
            kind: FailureKind::Crashed,
            what: "the server was killed by signal 9".into(),
            what_to_do: None,
            at: self.now,
            not_before: self.now + TICK * self.random.below(20),
            next_try: 1,
        }
    }

    fn strike(&mut self) {
        let node = NodeName::new(NAMES[self.random.below(3) as usize]);
        let fault = self.random.below(12);
        let failure = self.failure();
        let streams = self.streams(&node);
        let server = self.servers.get_mut(&node).unwrap();
        match fault {
            0..=3 if server.up && server.job.is_none() => {
                (server.up, server.hangs, server.failure) = (false, false, Some(failure));
            }
            4..=6 if server.up => server.hangs = true,
            7 | 8 => server.hangs = false,
            // the supervisor is killed: what it remembers is gone, what it was doing ends there
            9 => {
                for (name, server) in &mut self.servers {
                    let primary = *name == self.intent.primary;
                    server.told = if primary { self.intent.promise.clone() } else { Promise::none() };
                    if primary && server.up {
                        server.set = Some((server.told.clone(), self.now));
                    }
                    server.silent_since = None;
                    server.failure = None;
                    server.seen = None;
                    server.absent_since = Some(self.now);
                    if let Some((Action::MakeReplica { .. } | Action::Rewind { .. }, _)) = server.job.take() {
                        server.exists = false;
                    }
                }
                self.intent.wish = None;
                (self.primary_lsn, self.handed_over) = (None, None);
            }
            10 if streams && self.intent.wish.is_none() && !self.intent.promoting => {
                self.intent.wish = Some(Wish::Switchover { to: node });
            }
            // a replica's disk is lost
            11 if server.standby && node != self.intent.primary && server.job.is_none() => {
                (server.exists, server.up, server.hangs) = (false, false, false);
                server.log.clear();
            }
            _ => {}
        }
    }

    /// Clients write, replicas receive, what has arrived is acknowledged.
    fn flow(&mut self) {
        let names: Vec<NodeName> = self.servers.keys().cloned().collect();
        for name in &names {
            let server = self.servers.get_mut(name).unwrap();
            if let Some((promise, _)) = server.set.take_if(|(_, at)| *at <= self.now) {
                server.waits_for = promise;
            }
            let handed_over = matches!(server.job, Some((Action::HandOver, _)));
            if server.up && !server.hangs && !server.standby && !handed_over {
                for _ in 0..self.random.below(3) {
                    self.commits += 1;
                    self.waiting.push((name.clone(), server.log.len(), self.commits));
                    server.log.push(self.commits);
                }
            }
        }
        for name in names.iter().filter(|name| self.streams(name)).collect::<Vec<_>>() {
            let source = &self.servers[self.servers[name].follows.as_ref().unwrap()];
            let (log, timeline) = (source.log.clone(), source.timeline);
            let received = self.random.below(5) as usize;
            let server = self.servers.get_mut(name).unwrap();
            let end = (server.log.len() + received).min(log.len());
            server.log = log[..end].to_vec();
            server.timeline = timeline;
        }
        let servers = &self.servers;
        let acknowledged = &mut self.acknowledged;
        self.waiting.retain(|(on, at, commit)| {
            let server = &servers[on];
            if !server.up || server.log.get(*at) != Some(commit) {
                // its client was cut off
                return false;
            }
            let has = |member: &&NodeName| servers[*member].log.get(*at) == Some(commit);
            let arrived = server.waits_for.members.iter().filter(has).count() >= server.waits_for.quorum;
            if arrived && !server.hangs {
                acknowledged.insert(*commit);
            }
            !arrived || server.hangs
        });
    }

    fn observe(&mut self) -> Observed {
        let now = self.now;
        let streams: BTreeMap<_, _> = self.servers.keys().map(|name| (name.clone(), self.streams(name))).collect();
        let primary = self.intent.primary.clone();
        let answers = self.servers[&primary].serves() && !self.servers[&primary].standby;
        if answers {
            self.primary_lsn = Some(self.servers[&primary].end());
        }
        let mut nodes = BTreeMap::new();
        for (name, server) in &mut self.servers {
            let (seen, streams) = (server.serves(), streams[name]);
            if server.job.is_none() {
                let silent = server.up && !seen;
                server.silent_since = silent.then(|| server.silent_since.unwrap_or(now));
            }
            if answers {
                server.absent_since = (!streams).then(|| server.absent_since.unwrap_or(now));
            }
            let waits = seen && server.standby && !streams;
            server.not_streaming_since = waits.then(|| server.not_streaming_since.unwrap_or(now));
            let state = seen.then(|| ServerState {
                in_recovery: server.standby,
                system_id: OURS,
                timeline: server.timeline,
                lsn: server.end(),
                received_lsn: server.standby.then(|| server.end()),
                started_at: Micros(0),
                streaming: streams,
                deaf: false,
                receiver_slot: None,
                synchronous_standby_names: server.setting(),
                pending_restart: Vec::new(),
            });
            let whole = DataState::Whole { system_id: OURS, standby: server.standby };
            let view = NodeView {
                data: if server.exists { whole } else { DataState::Absent },
                was_primary: !server.standby,
                rogue: false,
                heard_at: Duration::ZERO,
                process: if server.up { ProcessState::Running { pid: 9, ready: true } } else { ProcessState::None },
                may_write: server.up,
                server: state,
                slots: None,
                silent_since: server.silent_since,
                not_streaming_since: server.not_streaming_since,
                absent_since: server.absent_since,
                vote: None,
                follows: server.follows.clone(),
                busy: server.job.as_ref().map(|(action, since)| (format!("{action:?}"), *since)),
                failure: server.failure.clone(),
            };
            nodes.insert(name.clone(), view);
        }
        let slot = |name: &NodeName| Slot {
            name: name.slot(),
            slot_type: "physical".into(),
            database: None,
            temporary: false,
            active: true,
            active_pid: None,
            restart_lsn: Some(Lsn(0)),
            confirmed_flush_lsn: None,
            retained_bytes: None,
            safe_wal_bytes: None,
            wal_status: Some("reserved".into()),
        };
        Observed {
            nodes,
            slots: answers.then(|| self.slots.iter().map(slot).collect()),
            office: Office::Undivided,
            roles_ready: true,
            primary_lsn: self.primary_lsn,
            logical_slots: BTreeSet::new(),
            handed_over: self.handed_over,
            arrived: answers && self.arrived(&primary),
        }
    }

    /// As the supervisor finds out whether what was acknowledged earlier is where the present setting says.
    fn arrived(&mut self, primary: &NodeName) -> bool {
        let now = self.now;
        let server = self.servers.get_mut(primary).unwrap();
        let (text, end) = (server.setting(), server.log.len());
        if server.seen.as_ref().is_none_or(|(seen, ..)| *seen != text) {
            server.seen = Some((text.clone(), now, None));
        }
        let Some((_, since, noted)) = &mut server.seen else { return false };
        if noted.is_none() && now.saturating_sub(*since) >= Duration::from_secs(2) {
            *noted = Some(end);
        }
        let Some(noted) = *noted else { return false };
        let told = server.told.clone();
        let has = |name: &&NodeName| self.streams(name) && self.servers[*name].log.len() >= noted;
        text == told.setting() && told.members.iter().filter(has).count() >= told.quorum
    }

    fn step(&mut self) {
        self.flow();
        let observed = self.observe();
        let plan = decide(&observed, &self.intent, self.now);
        for (name, planned) in plan.nodes {
            for action in planned.actions {
                self.begin(&name, action);
            }
        }
        if let Some(change) = plan.change {
            let after = self.intent.after(&change);
            let before = std::mem::replace(&mut self.intent, after);
            if let Change::Elect { node, .. } = change {
                self.elections += 1;
                let first = before.first_promise(&node, &observed);
                for server in self.servers.values_mut() {
                    (server.told, server.absent_since) = (Promise::none(), Some(self.now));
                }
                self.servers.get_mut(&node).unwrap().told = first;
                self.slots.clear();
                (self.primary_lsn, self.handed_over) = (None, None);
            }
        }
        self.now += TICK;
        for name in NAMES.map(NodeName::new) {
            self.finish(&name);
        }
        self.check();
    }

    /// A setting is taken by all of the server's processes within a second and a half.
    fn tell(&mut self, name: &NodeName) {
        let at = self.now + TICK * self.random.below(15);
        let server = self.servers.get_mut(name).unwrap();
        server.set = Some((server.told.clone(), at));
    }

    fn begin(&mut self, name: &NodeName, action: Action) {
        let (soon, later) = (self.now + TICK * 2, self.now + TICK * 20);
        let server = self.servers.get_mut(name).unwrap();
        match action {
            Action::Start { from } => {
                (server.up, server.hangs) = (true, false);
                (server.silent_since, server.seen, server.follows) = (None, None, from);
                // a server that starts has its setting from the first commit on
                (server.waits_for, server.set) = (server.told.clone(), None);
            }
            Action::Fence | Action::HandOver => server.job = Some((action, soon)),
            Action::MakeReplica { .. } | Action::Rewind { .. } => {
                (server.up, server.hangs) = (false, false);
                server.job = Some((action, later));
            }
            Action::Promote => {
                assert!(server.standby);
                (server.standby, server.follows, server.seen) = (false, None, None);
                server.timeline += 1;
                self.tell(name);
            }
            Action::Follow { from } => server.follows = Some(from),
            Action::SetPromise(promise) => {
                server.told = promise;
                self.tell(name);
            }
            Action::CreateSlot { replica } => {
                self.slots.insert(replica);
            }
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, name: &NodeName) {
        let failure = self.failure();
        let server = self.servers.get_mut(name).unwrap();
        let Some((action, _)) = server.job.take_if(|(_, until)| *until <= self.now) else { return };
        match action {
            Action::Fence => (server.up, server.hangs, server.failure) = (false, false, Some(failure)),
            // it ends in order once everything has been sent to those who receive it, the record of its end included
            Action::HandOver if server.up && !server.hangs => {
                server.up = false;
                self.handed_over = Some(LogEnd { lsn: server.end(), timeline: server.timeline });
                let mut log = server.log.clone();
                log.push(0);
                for other in self.servers.values_mut() {
                    let receives = other.follows.as_ref() == Some(name) && other.standby && other.serves();
                    if receives && log.starts_with(&other.log) {
                        other.log.clone_from(&log);
                    }
                }
                self.servers.get_mut(name).unwrap().log = log;
            }
            Action::HandOver => self.intent.wish = None,
            Action::MakeReplica { from, .. } | Action::Rewind { from } => {
                let source = &self.servers[&from];
                let (log, timeline) = (source.log.clone(), source.timeline);
                let server = self.servers.get_mut(name).unwrap();
                (server.log, server.timeline, server.failure) = (log, timeline, None);
                (server.exists, server.standby, server.up) = (true, true, false);
                self.slots.insert(name.clone());
            }
            other => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        let writers = self.servers.values().filter(|server| server.up && !server.standby);
        assert!(writers.count() <= 1, "two servers accept writes, or will when they wake up");
        let primary = &self.servers[&self.intent.primary];
        if primary.up && !primary.standby {
            let log: BTreeSet<u32> = primary.log.iter().copied().collect();
            let lost: Vec<_> = self.acknowledged.difference(&log).collect();
            assert!(lost.is_empty(), "acknowledged commits are lost: {lost:?}");
        }
    }

    fn is_well(&self) -> bool {
        let primary = &self.servers[&self.intent.primary];
        let followed = self.servers.keys().all(|name| *name == self.intent.primary || self.streams(name));
        primary.serves() && !primary.standby && followed && self.intent.promise.members.len() == 2
    }
}

/// One history; the number of elections in it. A seed that fails fails again: `run(SEED)`.
fn run(seed: u64) -> u32 {
    let mut world = World::new(seed);
    for _ in 0..TROUBLE {
        if world.random.below(12) == 0 {
            world.strike();
        }
        world.step();
    }
    // in peace what is stopped goes on
    world.servers.values_mut().for_each(|server| server.hangs = false);
    for _ in 0..PEACE {
        world.step();
    }
    let told = decide(&world.observe(), &world.intent, world.now);
    let sentences: Vec<_> = told.nodes.iter().map(|(name, node)| format!("{name}: {}", node.sentence)).collect();
    assert!(world.is_well(), "not well after peace: {sentences:?}");
    world.elections
}

#[test]
fn no_acknowledged_commit_is_lost() {
    let mut elections = 0;
    for seed in 0..600 {
        let ran = std::panic::catch_unwind(|| run(seed));
        assert!(ran.is_ok(), "seed {seed}");
        elections += ran.unwrap_or(0);
    }
    assert!(elections > 600, "only {elections} elections were simulated");
}
