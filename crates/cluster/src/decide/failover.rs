//! Failover against a model of servers with logs, commits and clients: whatever dies, hangs or wakes up, and
//! whenever the supervisor is killed, no acknowledged commit is lost and never do two servers accept writes; left in
//! peace, there is a primary, and everyone follows it.
//!
//! A seed that fails fails again: `MILLRACE_SEEDS=SEED cargo nextest run -p millrace-cluster no_acknowledged_commit_is_lost`;
//! `FROM..TO` runs many.

use std::collections::{BTreeMap, VecDeque};

use millrace_base::Micros;

use super::*;
use crate::{
    model::{
        Acknowledged, Log, NAMES, Place, Random, part_of, place_of, policy,
        seeds::{self, Counts, History, Trail},
        slot_of,
    },
    observed::{LogEnd, Part, Policy},
    plan::Change,
};

const TICK: Duration = Duration::from_millis(100);
/// Ticks with faults, and at most in peace afterwards.
const TROUBLE: u32 = 300;
const PEACE: u32 = 900;
/// Peace ends once all has been well for so many ticks; in one of so many histories it lasts.
const CALM: u32 = 50;
const LASTING: u64 = 16;
/// Histories in a usual run.
const SEEDS: u64 = 50_000;
const OURS: u64 = 7;

/// One server with its disk, and what the supervisor remembers of it.
struct Server {
    log: Log,
    timeline: u32,
    exists: bool,
    standby: bool,
    part: Part,
    up: bool,
    hangs: bool,
    follows: Option<Place>,
    /// What its processes really wait for; a new setting takes a while to be in force.
    waits_for: Promise,
    set: Option<(Promise, Duration)>,
    /// Where commits are in its log that clients wait for.
    waiting: VecDeque<usize>,
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
        self.log.end()
    }

    fn die(&mut self) {
        (self.up, self.hangs) = (false, false);
        // their clients are cut off
        self.waiting.clear();
    }
}

struct World {
    random: Random,
    now: Duration,
    names: [NodeName; 3],
    servers: [Server; 3],
    intent: Intent,
    slots: [bool; 3],
    primary_lsn: Option<Lsn>,
    handed_over: Option<LogEnd>,
    acknowledged: Acknowledged,
    /// Of logs, so far.
    records: u32,
    /// Peace lasts: what is well stays so.
    lasting: bool,
    counts: Counts,
    trail: Trail,
}

impl World {
    fn note(&mut self, what: impl std::fmt::Display) {
        self.trail.note(self.now, what);
    }

    fn primary(&self) -> Place {
        place_of(&self.intent.primary)
    }

    /// Whether a server receives the log of the one that it follows now. A sender lives as long as its server does,
    /// whatever the supervisor does with it.
    fn streams(&self, place: Place) -> bool {
        let server = &self.servers[place];
        let Some(from) = server.follows.filter(|_| server.standby && server.serves()) else { return false };
        let source = &self.servers[from];
        let sends = source.up && !source.hangs && !source.standby && from == self.primary();
        sends && self.slots[place] && source.log.starts_with(&server.log)
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
        let place = self.random.below(3) as Place;
        let node = NAMES[place];
        let fault = self.random.below(12);
        let failure = self.failure();
        let streams = self.streams(place);
        let primary = self.primary();
        let server = &mut self.servers[place];
        match fault {
            0..=3 if server.up && server.job.is_none() => {
                server.die();
                server.failure = Some(failure);
                self.note(format_args!("{node}: server killed"));
            }
            4..=6 if server.up => {
                server.hangs = true;
                self.note(format_args!("{node}: server frozen"));
            }
            7 | 8 => server.hangs = false,
            9 => self.kill_supervisor(),
            10 if streams && self.intent.wish.is_none() && !self.intent.promoting => {
                self.intent.wish = Some(Wish::Switchover { to: self.names[place].clone() });
                self.note(format_args!("switchover to {node}"));
            }
            // a replica's disk is lost
            11 if server.standby && place != primary && server.job.is_none() => {
                server.die();
                (server.exists, server.log) = (false, Log::default());
                self.note(format_args!("{node}: disk lost"));
            }
            _ => {}
        }
    }

    /// What it remembers is gone, what it was doing ends there.
    fn kill_supervisor(&mut self) {
        let primary = self.primary();
        for (place, server) in self.servers.iter_mut().enumerate() {
            let primary = place == primary;
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
        self.note("supervisor killed");
    }

    /// Clients write, replicas receive, what has arrived is acknowledged.
    fn flow(&mut self) {
        for server in &mut self.servers {
            if let Some((promise, _)) = server.set.take_if(|(_, at)| *at <= self.now) {
                server.waits_for = promise;
            }
            let handed_over = matches!(server.job, Some((Action::HandOver, _)));
            if server.up && !server.hangs && !server.standby && !handed_over {
                for _ in 0..self.random.below(3) {
                    self.records += 1;
                    let at = server.log.push(self.records);
                    server.waiting.push_back(at);
                }
            }
        }
        let streams = [0, 1, 2].map(|place| self.streams(place));
        for place in (0..3).filter(|place| streams[*place]) {
            let received = self.random.below(5) as usize;
            let source = self.servers[place].follows.unwrap();
            let Ok([server, source]) = self.servers.get_disjoint_mut([place, source]) else {
                panic!("{} follows itself", NAMES[place])
            };
            let end = (server.log.len() + received).min(source.log.len());
            server.log.receive(&source.log, end);
            server.timeline = source.timeline;
        }
        for place in 0..3 {
            self.acknowledge(place);
        }
    }

    fn acknowledge(&mut self, place: Place) {
        let server = &self.servers[place];
        if server.hangs || server.waiting.is_empty() {
            return;
        }
        let Promise { members, quorum } = server.waits_for.clone();
        while let Some(at) = self.servers[place].waiting.front().copied() {
            let commit = self.servers[place].log.at(at);
            let has = |member: &&NodeName| self.servers[place_of(member)].log.has(at, commit);
            if members.iter().filter(has).count() < quorum {
                return;
            }
            self.servers[place].waiting.pop_front();
            self.acknowledged.add(at, commit);
        }
    }

    fn observe(&mut self) -> Observed {
        let now = self.now;
        let streams = [0, 1, 2].map(|place| self.streams(place));
        let primary = self.primary();
        let answers = self.servers[primary].serves() && !self.servers[primary].standby;
        if answers {
            self.primary_lsn = Some(self.servers[primary].end());
        }
        let mut nodes = BTreeMap::new();
        for ((name, server), streams) in self.names.iter().zip(&mut self.servers).zip(streams) {
            let seen = server.serves();
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
                restored: None,
                heard_at: Duration::ZERO,
                part: server.part,
                process: if server.up { ProcessState::Running { pid: 9, ready: true } } else { ProcessState::None },
                may_write: server.up,
                dying: false,
                disk: crate::DiskView::default(),
                server: state,
                slots: None,
                silent_since: server.silent_since,
                not_streaming_since: server.not_streaming_since,
                within: None,
                absent_since: server.absent_since,
                vote: None,
                follows: server.follows.map(|from| self.names[from].clone()),
                busy: server.job.as_ref().map(|(action, since)| (format!("{action:?}"), *since)),
                failure: server.failure.clone(),
            };
            nodes.insert(name.clone(), view);
        }
        let slots = self.names.iter().zip(self.slots).filter(|(_, made)| *made);
        Observed {
            nodes,
            slots: answers.then(|| slots.map(|(name, _)| slot_of(name, Lsn(0))).collect()),
            office: Office::Undivided,
            roles_ready: true,
            primary_lsn: self.primary_lsn,
            logical_slots: BTreeSet::new(),
            handed_over: self.handed_over,
            arrived: answers && self.arrived(primary),
        }
    }

    /// As the supervisor finds out whether what was acknowledged earlier is where the present setting says.
    fn arrived(&mut self, primary: Place) -> bool {
        let now = self.now;
        let server = &mut self.servers[primary];
        let (text, end) = (server.setting(), server.log.len());
        if server.seen.as_ref().is_none_or(|(seen, ..)| *seen != text) {
            server.seen = Some((text.clone(), now, None));
        }
        let Some((_, since, noted)) = &mut server.seen else { return false };
        if noted.is_none() && now.saturating_sub(*since) >= Duration::from_secs(2) {
            *noted = Some(end);
        }
        let Some(noted) = *noted else { return false };
        let told = &self.servers[primary].told;
        let has = |name: &&NodeName| {
            let place = place_of(name);
            self.streams(place) && self.servers[place].log.len() >= noted
        };
        text == told.setting() && told.members.iter().filter(has).count() >= told.quorum
    }

    fn step(&mut self) {
        self.flow();
        let observed = self.observe();
        let plan = decide(&observed, &self.intent, self.now);
        for (name, planned) in plan.nodes {
            for action in planned.actions {
                self.note(format_args!("{name}: {action:?}"));
                self.begin(place_of(&name), action);
            }
        }
        if let Some(change) = plan.change {
            self.note(format_args!("{change:?}"));
            let after = self.intent.after(&change);
            let before = std::mem::replace(&mut self.intent, after);
            if let Change::Elect { node, .. } = change {
                self.counts.elections += 1;
                let first = before.first_promise(&node, &observed);
                for server in &mut self.servers {
                    (server.told, server.absent_since) = (Promise::none(), Some(self.now));
                }
                self.servers[place_of(&node)].told = first;
                self.slots = [false; 3];
                (self.primary_lsn, self.handed_over) = (None, None);
            }
        }
        self.now += TICK;
        for place in 0..3 {
            self.finish(place);
        }
        self.check();
    }

    /// A setting is taken by all of the server's processes within a second and a half.
    fn tell_server(&mut self, place: Place) {
        let at = self.now + TICK * self.random.below(15);
        let server = &mut self.servers[place];
        server.set = Some((server.told.clone(), at));
    }

    fn begin(&mut self, place: Place, action: Action) {
        let (soon, later) = (self.now + TICK * 2, self.now + TICK * 20);
        let server = &mut self.servers[place];
        match action {
            Action::Start { from } => {
                (server.up, server.hangs) = (true, false);
                (server.silent_since, server.seen) = (None, None);
                server.follows = from.as_ref().map(place_of);
                // a server that starts has its setting from the first commit on
                (server.waits_for, server.set) = (server.told.clone(), None);
            }
            Action::Fence | Action::HandOver => server.job = Some((action, soon)),
            Action::MakeReplica { .. } | Action::Rewind { .. } => {
                server.die();
                server.job = Some((action, later));
            }
            Action::Promote => {
                assert!(server.standby);
                (server.standby, server.follows, server.seen) = (false, None, None);
                server.timeline += 1;
                self.counts.promotions += 1;
                self.tell_server(place);
            }
            Action::Follow { from } => server.follows = Some(place_of(&from)),
            Action::SetPromise(promise) => {
                server.told = promise;
                self.tell_server(place);
            }
            Action::CreateSlot { replica } => self.slots[place_of(&replica)] = true,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, place: Place) {
        let failure = self.failure();
        let server = &mut self.servers[place];
        let Some((action, _)) = server.job.take_if(|(_, until)| *until <= self.now) else { return };
        match action {
            Action::Fence => {
                server.die();
                server.failure = Some(failure);
                self.counts.fences += 1;
            }
            Action::HandOver if server.up && !server.hangs => self.hand_over(place),
            Action::HandOver => self.intent.wish = None,
            Action::MakeReplica { from, .. } | Action::Rewind { from } => {
                let Ok([server, source]) = self.servers.get_disjoint_mut([place, place_of(&from)]) else {
                    panic!("{from} is to be a replica of itself")
                };
                server.log.copy(&source.log);
                (server.timeline, server.failure) = (source.timeline, None);
                (server.exists, server.standby, server.up) = (true, true, false);
                self.slots[place] = true;
                self.counts.rebuilt += 1;
            }
            other => panic!("{other:?}"),
        }
    }

    /// It ends in order once everything has been sent to those who receive it, the record of its end included.
    fn hand_over(&mut self, place: Place) {
        self.records += 1;
        self.counts.handed_over += 1;
        let server = &mut self.servers[place];
        server.die();
        self.handed_over = Some(LogEnd { lsn: server.end(), timeline: server.timeline });
        server.log.push(self.records);
        for other in (0..3).filter(|other| *other != place) {
            let Ok([server, other]) = self.servers.get_disjoint_mut([place, other]) else {
                unreachable!("they are two")
            };
            let receives = other.follows == Some(place) && other.standby && other.serves();
            if receives && server.log.starts_with(&other.log) {
                other.log.copy(&server.log);
            }
        }
    }

    fn check(&mut self) {
        let writers = self.servers.iter().filter(|server| server.up && !server.standby);
        assert!(writers.count() <= 1, "two servers accept writes, or will when they wake up");
        let primary = &self.servers[self.primary()];
        if primary.up && !primary.standby {
            let lost = self.acknowledged.lost_by(&primary.log);
            assert!(lost.is_empty(), "acknowledged commits are lost: {lost:?}");
        }
    }

    fn is_well(&self) -> bool {
        let place = self.primary();
        let primary = &self.servers[place];
        let followed = (0..3).all(|other| other == place || self.streams(other));
        let members = (0..3).filter(|other| *other != place && self.servers[*other].part.priority > 0).count();
        let leads = primary.serves() && !primary.standby && primary.part.priority > 0;
        leads && followed && self.intent.promise.members.len() == members
    }

    fn sentences(&mut self) -> String {
        let told = decide(&self.observe(), &self.intent, self.now);
        let sentences: Vec<_> = told.nodes.iter().map(|(name, node)| format!("{name}: {}", node.sentence)).collect();
        sentences.join("; ")
    }
}

impl History for World {
    fn new(seed: u64) -> Self {
        let server = |name: &str| Server {
            part: part_of(name, seed),
            log: Log::new(),
            timeline: 1,
            exists: true,
            standby: name != "a",
            up: true,
            hangs: false,
            follows: (name != "a").then_some(0),
            waits_for: Promise::none(),
            set: None,
            waiting: VecDeque::new(),
            job: None,
            told: Promise::none(),
            silent_since: None,
            absent_since: Some(Duration::ZERO),
            not_streaming_since: None,
            failure: None,
            seen: None,
        };
        let strict = seed.is_multiple_of(3);
        Self {
            random: Random::of(seed),
            now: Duration::from_secs(100),
            names: NAMES.map(NodeName::new),
            servers: NAMES.map(server),
            intent: Intent {
                goal: Goal::Run,
                primary: NodeName::new("a"),
                system_id: Some(OURS),
                term: 1,
                promoting: false,
                promise: Promise::none(),
                paused: false,
                wish: None,
                said: Default::default(),
                restored: None,
                policy: Policy { failover: true, durability: Durability::Quorum { quorum: 1, strict }, ..policy() },
            },
            slots: [false, true, true],
            primary_lsn: None,
            handed_over: None,
            acknowledged: Acknowledged::default(),
            records: 0,
            lasting: seed.is_multiple_of(LASTING),
            counts: Counts::default(),
            trail: Trail::default(),
        }
    }

    fn run(&mut self) {
        for _ in 0..TROUBLE {
            if self.random.below(12) == 0 {
                self.counts.faults += 1;
                self.strike();
            }
            self.step();
        }
        // in peace what is stopped goes on
        self.servers.iter_mut().for_each(|server| server.hangs = false);
        self.note("peace");
        let (mut well, mut ticks) = (0, 0);
        while ticks < PEACE && (self.lasting || well < CALM) {
            self.step();
            well = if self.is_well() { well + 1 } else { 0 };
            ticks += 1;
        }
        assert!(well > 0, "not well after peace: {}", self.sentences());
    }

    fn counts(&self) -> Counts {
        Counts { acknowledged: self.acknowledged.len() as u64, ..self.counts }
    }

    fn trail(&mut self) -> &mut Trail {
        &mut self.trail
    }
}

#[test]
fn no_acknowledged_commit_is_lost() {
    let counts = seeds::run::<World>("no_acknowledged_commit_is_lost", SEEDS);
    let happens = [
        counts.elections > counts.seeds,
        counts.handed_over > counts.seeds / 3,
        counts.fences > counts.seeds / 6,
        counts.rebuilt > counts.seeds,
    ];
    assert!(counts.seeds < 100 || !happens.contains(&false), "too little happens: {counts:?}");
}
