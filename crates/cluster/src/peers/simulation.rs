//! Supervisors on three hosts against a model of their hosts, clocks, networks, servers and etcd: whatever dies, hangs,
//! wakes up or is cut off, no acknowledged commit is lost, never are two servers writable whose supervisors live, and once
//! the trouble is over there is a primary, and everyone follows it.
//!
//! Real: `decide`, the election, the promise, what is heard of others and may be done by it. Modelled: everything else,
//! each thing at its worst within what its manual allows. A seed that fails fails again:
//! `MILLRACE_SEEDS=SEED cargo nextest run -p millrace-cluster supervisors_on_three_hosts`; `FROM..TO` runs many.

use millrace_base::Lsn;

use super::*;
use crate::{
    model::{
        Acknowledged, HOLD, Log, NAMES, Place, Random, part_of, place_of, policy,
        seeds::{self, Counts, History, Trail},
        slot_of,
    },
    observed::{Durability, Part, Policy, Wish},
};

mod agent;
mod etcd;
mod server;

use agent::Agent;
use etcd::Etcd;
use server::Server;

const TICK: Duration = Duration::from_millis(50);
/// Ticks with faults, and at most in peace afterwards.
const TROUBLE: u32 = 1200;
const PEACE: u32 = 2400;
/// Histories in a usual run.
const SEEDS: u64 = 50_000;
const OURS: u64 = 7;
const TTL: Duration = Duration::from_secs(3);

/// Less than `n` ticks.
fn ticks(random: &Random, n: u32) -> Duration {
    TICK * random.below(n)
}

/// A message's way: mostly short, at times long.
fn way(random: &Random) -> Duration {
    if random.one_in(20) { ticks(random, 30) } else { ticks(random, 3) }
}

/// A machine: what is on it lives and dies with it.
struct Host {
    server: Server,
    /// `None`: killed, or the host is down.
    agent: Option<Box<Agent>>,
    /// By true time: when each of these troubles ends.
    down: Duration,
    frozen: Duration,
    agent_dead: Duration,
    agent_frozen: Duration,
    cut_off_etcd: Duration,
    /// Its clock: parts per million too fast, and where it began.
    drift: i64,
    began: Duration,
}

impl Host {
    fn clock(&self, now: Duration) -> Duration {
        let micros = i64::try_from(now.as_micros()).unwrap();
        self.began + Duration::from_micros(u64::try_from(micros + micros * self.drift / 1_000_000).unwrap())
    }
}

struct World {
    random: Random,
    now: Duration,
    names: [NodeName; 3],
    hosts: [Host; 3],
    etcd: Etcd,
    etcd_away: Duration,
    /// Until when two hosts cannot reach each other; either of them is the first.
    cut: [[Duration; 3]; 3],
    /// A broken connection is noticed after this.
    notice: Duration,
    acknowledged: Acknowledged,
    /// Of logs, so far.
    records: u32,
    counts: Counts,
    policy: Policy,
    /// One in so many ticks.
    faults: u32,
    trail: Trail,
}

impl World {
    fn note(&mut self, what: impl std::fmt::Display) {
        self.trail.note(self.now, what);
    }

    /// The number of a new record of some log.
    fn record(&mut self) -> u32 {
        self.records += 1;
        self.records
    }

    fn reaches_etcd(&self, place: Place) -> bool {
        let host = &self.hosts[place];
        self.now >= self.etcd_away && self.now >= host.cut_off_etcd && self.now >= host.down
    }

    fn are_connected(&self, one: Place, other: Place) -> bool {
        let runs = |place: Place| self.now >= self.hosts[place].down && self.now >= self.hosts[place].frozen;
        runs(one) && runs(other) && self.now >= self.cut[one][other]
    }

    fn cut(&mut self, one: Place, other: Place, until: Duration) {
        (self.cut[one][other], self.cut[other][one]) = (until, until);
    }

    /// The server works: it answers, writes, receives.
    fn serves(&self, place: Place) -> bool {
        let host = &self.hosts[place];
        host.server.up && self.now >= host.server.hangs && self.now >= host.frozen && self.now >= host.down
    }

    fn strike(&mut self) {
        let place = self.random.below(3) as Place;
        let other = self.random.below(3) as Place;
        let long = if self.random.one_in(3) { ticks(&self.random, 400) } else { ticks(&self.random, 60) };
        let until = self.now + long;
        let fault = self.random.below(16);
        let seconds = long.as_secs_f64();
        let node = NAMES[place];
        match fault {
            0 | 1 => {
                self.note(format_args!("{node}: host down for {seconds} s"));
                let now = self.now;
                let host = &mut self.hosts[place];
                host.down = until;
                host.server.die();
                if let Some(agent) = host.agent.take() {
                    host.server.interrupt(agent.job());
                }
                host.agent_dead = host.agent_dead.max(now);
            }
            2 => {
                self.note(format_args!("{node}: host frozen for {seconds} s"));
                self.hosts[place].frozen = until;
            }
            3 => {
                self.note(format_args!("{node}: agent killed, away for {seconds} s"));
                let host = &mut self.hosts[place];
                host.agent_dead = until;
                if let Some(agent) = host.agent.take() {
                    host.server.interrupt(agent.job());
                }
            }
            4 => {
                self.note(format_args!("{node}: agent frozen for {seconds} s"));
                self.hosts[place].agent_frozen = until;
            }
            5 | 6 => {
                self.note(format_args!("{node}: server killed"));
                self.hosts[place].server.die();
            }
            7 => {
                self.note(format_args!("{node}: server frozen for {seconds} s"));
                self.hosts[place].server.hangs = until;
            }
            8 | 9 => {
                self.note(format_args!("{node}: cut off etcd for {seconds} s"));
                self.hosts[place].cut_off_etcd = until;
            }
            10 | 11 if place != other => {
                self.note(format_args!("{node} and {}: cut for {seconds} s", NAMES[other]));
                self.cut(place, other, until);
            }
            12 => {
                self.note(format_args!("{node}: cut off everything for {seconds} s"));
                for other in (0..3).filter(|other| *other != place) {
                    self.cut(place, other, until);
                }
                self.hosts[place].cut_off_etcd = until;
            }
            13 => {
                self.note(format_args!("etcd: away for {seconds} s"));
                self.etcd_away = until;
            }
            14 => self.ask_for_switchover(place, other),
            // two disks that are lost are more than what was promised bears
            15 if self.is_well() && self.hosts[place].server.standby => {
                self.note(format_args!("{node}: disk lost"));
                let server = &mut self.hosts[place].server;
                server.die();
                server.lose();
            }
            _ => {}
        }
    }

    /// An operator's word, given to the agent of a host.
    fn ask_for_switchover(&mut self, place: Place, to: Place) {
        let Some(agent) = self.hosts[place].agent.as_mut() else { return };
        if let Some((revision, record)) = agent.wish_for(&self.names[to]) {
            self.note(format_args!("{}: switchover to {}", NAMES[place], NAMES[to]));
            let written = self.etcd.write(self.now, revision, &record, &Claim::Word, 0);
            self.note(format_args!("written: {written}"));
        }
    }

    /// Clients write, replicas receive, what has arrived is acknowledged.
    fn flow(&mut self) {
        for place in 0..3 {
            let works = self.serves(place);
            let host = &mut self.hosts[place];
            if works {
                host.server.take_settings(self.now);
            }
            let hands_over = host.agent.as_ref().is_some_and(|agent| agent.hands_over());
            if works && !host.server.standby && !hands_over {
                for _ in 0..self.random.below(3) {
                    let record = self.record();
                    let server = &mut self.hosts[place].server;
                    let at = server.log.push(record);
                    server.waiting.push_back(at);
                }
            }
        }
        for place in 0..3 {
            self.receive(place);
        }
        for place in 0..3 {
            self.acknowledge(place);
        }
    }

    fn receive(&mut self, place: Place) {
        let serves = self.serves(place);
        for source in (0..3).filter(|source| *source != place) {
            let works = self.serves(source);
            let connected = serves && works && self.are_connected(place, source);
            let (now, notice) = (self.now, self.notice);
            let Ok([Host { server: follower, .. }, Host { server: sender, .. }]) =
                self.hosts.get_disjoint_mut([place, source])
            else {
                unreachable!("it does not follow itself")
            };
            let wants = follower.standby && follower.follows == Some(source) && now >= follower.replayed;
            let sends = connected && wants && !sender.standby && sender.slots[place];
            if sends && sender.is_ahead_of(follower) {
                assert!(
                    sender.log.starts_with(&follower.log),
                    "{} streams from {}, which has other log under the same timeline",
                    NAMES[place],
                    NAMES[source]
                );
                let received = self.random.below(5) as usize;
                let end = (follower.log.len() + received).min(sender.log.len());
                follower.log.receive(&sender.log, end);
                follower.history.clone_from(&sender.history);
                follower.history.retain(|(_, begin)| *begin <= end);
                follower.contact = now;
                sender.reported[place] = Some((end, now));
            } else if sends && self.random.one_in(10) {
                // one with log of its own reaches a sender of the old timeline, and tells how far it has got
                sender.reported[place] = Some((follower.log.len(), now));
            }
            // a sender whose receiver is gone is there until it notices
            let reported = &mut sender.reported[place];
            if works && reported.is_some_and(|(_, at)| now.saturating_sub(at) > notice + TICK) {
                *reported = None;
            }
        }
    }

    fn acknowledge(&mut self, place: Place) {
        let host = &self.hosts[place];
        let server = &host.server;
        if server.waiting.is_empty() || self.now < server.hangs || self.now < host.frozen {
            return;
        }
        let (arrived, timeline) = (server.received_by(&server.waits_for), server.timeline());
        while let Some(at) = self.hosts[place].server.waiting.pop_front_if(|at| *at < arrived) {
            let commit = self.hosts[place].server.log.at(at);
            self.acknowledged.add(at, commit);
            for (host, name) in self.hosts.iter().zip(NAMES) {
                let newer = host.server.timeline() > timeline;
                assert!(
                    host.server.standby || !newer || host.server.log.has(at, commit),
                    "{} acknowledges {commit}, which {name}, the newer primary, does not have",
                    NAMES[place]
                );
            }
        }
    }

    fn step(&mut self) {
        self.flow();
        self.counts.lost_leases += u64::from(self.etcd.expire(self.now));
        self.now += TICK;
        let first = self.random.below(3) as Place;
        for i in 0..3 {
            self.live((first + i) % 3);
        }
        self.check();
    }

    /// A host's agent does what it does in a tick.
    fn live(&mut self, place: Place) {
        let host = &mut self.hosts[place];
        if self.now < host.down || self.now < host.frozen {
            return;
        }
        if host.agent.is_none() && self.now >= host.agent_dead {
            let (clock, random) = (host.clock(self.now), self.random.clone());
            let name = self.names[place].clone();
            host.agent = Some(Box::new(Agent::new(name, &host.server, self.policy, clock, random)));
        }
        if self.now < host.agent_frozen {
            return;
        }
        // taken out, so that it can look at the world
        let Some(mut agent) = host.agent.take() else { return };
        agent.live(self);
        self.hosts[place].agent = Some(agent);
    }

    fn check(&mut self) {
        let now = self.now;
        let guarded = |host: &Host| {
            let alive = now >= host.frozen && now >= host.agent_frozen && now >= host.server.hangs;
            let writable = host.server.up && !host.server.standby;
            // one that finds a primary's server running listens first
            let settled = |agent: &Agent| agent.age(host.clock(now)) > TTL;
            alive && writable && host.agent.as_deref().is_some_and(settled)
        };
        let writable = self.hosts.each_ref().map(guarded);
        assert!(writable.iter().filter(|of| **of).count() <= 1, "of {NAMES:?}, these are writable: {writable:?}");
    }

    /// Called when a server has become the primary.
    fn promoted(&mut self, place: Place) {
        self.counts.promotions += 1;
        let name = NAMES[place];
        self.note(format_args!("{name}: promoted"));
        let lost = self.acknowledged.lost_by(&self.hosts[place].server.log);
        assert!(lost.is_empty(), "{name} is promoted without acknowledged commits: {lost:?}");
    }

    fn is_well(&self) -> bool {
        let Some((record, _)) = &self.etcd.record else { return false };
        let place = place_of(&record.primary);
        let primary = &self.hosts[place].server;
        let follows = |(other, reported): (Place, &Option<(usize, Duration)>)| {
            other == place || reported.is_some_and(|(end, _)| end + 10 > primary.log.len())
        };
        let members = (0..3).filter(|other| *other != place && self.hosts[*other].server.part.priority > 0).count();
        let all = record.promise.members.len() == members && !record.promoting && record.wish.is_none();
        self.serves(place) && !primary.standby && all && primary.reported.iter().enumerate().all(follows)
    }

    fn sentences(&self) -> String {
        let of = |(name, host): (&str, &Host)| match &host.agent {
            Some(agent) => format!("{name}: {}", agent.sentence()),
            None => format!("{name}: no agent"),
        };
        let record = &self.etcd.record.as_ref().unwrap().0;
        format!("{:?}; record {record:?}", NAMES.into_iter().zip(&self.hosts).map(of).collect::<Vec<_>>())
    }
}

impl History for World {
    fn new(seed: u64) -> Self {
        let random = Random::of(seed);
        let host = |name: &str| Host {
            server: Server::new(name == "a", part_of(name, seed)),
            agent: None,
            down: Duration::ZERO,
            frozen: Duration::ZERO,
            agent_dead: Duration::ZERO,
            agent_frozen: Duration::ZERO,
            cut_off_etcd: Duration::ZERO,
            drift: i64::from(random.below(10_000)) - 5_000,
            began: Duration::from_secs(u64::from(random.below(1_000))),
        };
        let durability = Durability::Quorum { quorum: 1, strict: seed.is_multiple_of(3) };
        Self {
            names: NAMES.map(NodeName::new),
            hosts: NAMES.map(host),
            now: Duration::from_secs(100),
            etcd: Etcd::of(NodeName::new("a")),
            etcd_away: Duration::ZERO,
            cut: [[Duration::ZERO; 3]; 3],
            notice: TICK * 3 + ticks(&random, 60),
            acknowledged: Acknowledged::default(),
            records: 0,
            counts: Counts::default(),
            policy: Policy { failover: true, durability, ..policy() },
            faults: [15, 40, 80, 160][random.below(4) as usize],
            trail: Trail::default(),
            random,
        }
    }

    fn run(&mut self) {
        // the cluster stands first
        let mut well = 0;
        let mut ticks = 0;
        while well < 20 {
            self.step();
            well = if self.is_well() { well + 1 } else { 0 };
            ticks += 1;
            assert!(ticks < PEACE, "it does not come up");
        }
        for _ in 0..TROUBLE {
            if self.random.one_in(self.faults) {
                self.counts.faults += 1;
                self.strike();
            }
            self.step();
        }
        self.note("peace");
        for host in &mut self.hosts {
            for until in [&mut host.down, &mut host.frozen, &mut host.agent_dead, &mut host.agent_frozen] {
                *until = Duration::ZERO;
            }
            (host.cut_off_etcd, host.server.hangs) = (Duration::ZERO, Duration::ZERO);
        }
        self.cut = [[Duration::ZERO; 3]; 3];
        self.etcd_away = Duration::ZERO;
        let (mut well, mut ticks) = (0, 0);
        while well < 20 {
            self.step();
            well = if self.is_well() { well + 1 } else { 0 };
            ticks += 1;
            assert!(ticks < PEACE, "not well after peace: {}", self.sentences());
        }
        let primary = place_of(&self.etcd.record.as_ref().unwrap().0.primary);
        let lost = self.acknowledged.lost_by(&self.hosts[primary].server.log);
        assert!(lost.is_empty(), "acknowledged commits are lost in the end: {lost:?}");
    }

    fn counts(&self) -> Counts {
        Counts { acknowledged: self.acknowledged.len() as u64, ..self.counts }
    }

    fn trail(&mut self) -> &mut Trail {
        &mut self.trail
    }
}

#[test]
fn supervisors_on_three_hosts() {
    let counts = seeds::run::<World>("supervisors_on_three_hosts", SEEDS);
    let happens = [
        counts.acknowledged > 100 * counts.seeds,
        counts.promotions > counts.seeds / 2,
        counts.lost_leases > counts.seeds / 2,
        counts.guarded > counts.seeds / 2,
        counts.fences > counts.seeds / 6,
        counts.proofs > counts.seeds,
        counts.handed_over > counts.seeds / 6,
        counts.rebuilt > counts.seeds / 3,
    ];
    assert!(counts.seeds < 100 || !happens.contains(&false), "too little happens: {counts:?}");
}
