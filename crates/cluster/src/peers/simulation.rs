//! Supervisors on three hosts against a model of their hosts, clocks, networks, servers and etcd: whatever dies, hangs,
//! wakes up or is cut off, no acknowledged commit is lost, never are two servers writable whose supervisors live, and once
//! the trouble is over there is a primary, and everyone follows it.
//!
//! Real: `decide`, the election, the promise, what is heard of others and may be done by it. Modelled: everything else,
//! each thing at its worst within what its manual allows. A seed that fails fails again:
//! `MILLRACE_SEEDS=SEED cargo nextest run -p millrace-cluster supervisors_on_three_hosts`; `FROM..TO` runs many.

use std::{cell::RefCell, rc::Rc};

use millrace_base::Lsn;

use super::*;
use crate::observed::{Durability, Policy, Wish};

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
const NAMES: [&str; 3] = ["a", "b", "c"];
const OURS: u64 = 7;
const TTL: Duration = Duration::from_secs(3);
const HOLD: Duration = Duration::from_millis(1500);

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
#[derive(Debug, Clone)]
struct Random(Rc<RefCell<u64>>);

impl Random {
    fn below(&self, n: u32) -> u32 {
        let mut state = self.0.borrow_mut();
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        u32::try_from(state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40).unwrap() % n
    }

    fn one_in(&self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// Less than `n` ticks.
    fn ticks(&self, n: u32) -> Duration {
        TICK * self.below(n)
    }

    /// A message's way: mostly short, at times long.
    fn way(&self) -> Duration {
        if self.one_in(20) { self.ticks(30) } else { self.ticks(3) }
    }
}

/// A machine: what is on it lives and dies with it.
struct Host {
    server: Server,
    /// `None`: killed, or the host is down.
    agent: Option<Agent>,
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
    hosts: BTreeMap<NodeName, Host>,
    etcd: Etcd,
    etcd_away: Duration,
    /// Pairs of hosts that cannot reach each other.
    cut: BTreeMap<(NodeName, NodeName), Duration>,
    /// A broken connection is noticed after this.
    notice: Duration,
    acknowledged: BTreeSet<u32>,
    /// Written and not yet acknowledged: who wrote it, its place in the log, its number.
    waiting: Vec<(NodeName, usize, u32)>,
    commits: u32,
    promotions: u32,
    policy: Policy,
    /// One in so many ticks.
    faults: u32,
    /// For whoever reads a failure.
    trail: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let random = Random(Rc::new(RefCell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)));
        let host = |name: &&str| {
            let host = Host {
                server: Server::new(*name == "a"),
                agent: None,
                down: Duration::ZERO,
                frozen: Duration::ZERO,
                agent_dead: Duration::ZERO,
                agent_frozen: Duration::ZERO,
                cut_off_etcd: Duration::ZERO,
                drift: i64::from(random.below(10_000)) - 5_000,
                began: Duration::from_secs(u64::from(random.below(1_000))),
            };
            (NodeName::new(name), host)
        };
        let durability = Durability::Quorum { quorum: 1, strict: seed.is_multiple_of(3) };
        Self {
            hosts: NAMES.iter().map(host).collect(),
            now: Duration::from_secs(100),
            etcd: Etcd::of(NodeName::new("a")),
            etcd_away: Duration::ZERO,
            cut: BTreeMap::new(),
            notice: TICK * 3 + random.ticks(60),
            acknowledged: BTreeSet::new(),
            waiting: Vec::new(),
            commits: 0,
            promotions: 0,
            policy: Policy {
                failover: true,
                durability,
                not_streaming_max: Duration::from_secs(15),
                silent_max: Duration::from_secs(3),
                start_max: Duration::from_secs(60),
                absent_max: Duration::from_secs(5),
                hold: HOLD,
            },
            faults: [15, 40, 80, 160][random.below(4) as usize],
            trail: Vec::new(),
            random,
        }
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        self.trail.push(format!("{:.2} {what}", (self.now.as_secs_f64() - 100.0)));
    }

    fn reaches_etcd(&self, name: &NodeName) -> bool {
        let host = &self.hosts[name];
        self.now >= self.etcd_away && self.now >= host.cut_off_etcd && self.now >= host.down
    }

    fn are_connected(&self, one: &NodeName, other: &NodeName) -> bool {
        let pair = if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
        let runs = |name: &NodeName| self.now >= self.hosts[name].down && self.now >= self.hosts[name].frozen;
        runs(one) && runs(other) && self.cut.get(&pair).is_none_or(|until| self.now >= *until)
    }

    /// The server works: it answers, writes, receives.
    fn serves(&self, name: &NodeName) -> bool {
        let host = &self.hosts[name];
        host.server.up && self.now >= host.server.hangs && self.now >= host.frozen && self.now >= host.down
    }

    fn strike(&mut self) {
        let node = NodeName::new(NAMES[self.random.below(3) as usize]);
        let other = NodeName::new(NAMES[self.random.below(3) as usize]);
        let long = if self.random.one_in(3) { self.random.ticks(400) } else { self.random.ticks(60) };
        let until = self.now + long;
        let fault = self.random.below(16);
        let seconds = long.as_secs_f64();
        match fault {
            0 | 1 => {
                self.note(format_args!("{node}: host down for {seconds} s"));
                let now = self.now;
                let host = self.hosts.get_mut(&node).unwrap();
                host.down = until;
                host.server.die();
                if let Some(agent) = host.agent.take() {
                    host.server.interrupt(agent.job());
                }
                host.agent_dead = host.agent_dead.max(now);
            }
            2 => {
                self.note(format_args!("{node}: host frozen for {seconds} s"));
                self.hosts.get_mut(&node).unwrap().frozen = until;
            }
            3 => {
                self.note(format_args!("{node}: agent killed, away for {seconds} s"));
                let host = self.hosts.get_mut(&node).unwrap();
                host.agent_dead = until;
                if let Some(agent) = host.agent.take() {
                    host.server.interrupt(agent.job());
                }
            }
            4 => {
                self.note(format_args!("{node}: agent frozen for {seconds} s"));
                self.hosts.get_mut(&node).unwrap().agent_frozen = until;
            }
            5 | 6 => {
                self.note(format_args!("{node}: server killed"));
                self.hosts.get_mut(&node).unwrap().server.die();
            }
            7 => {
                self.note(format_args!("{node}: server frozen for {seconds} s"));
                self.hosts.get_mut(&node).unwrap().server.hangs = until;
            }
            8 | 9 => {
                self.note(format_args!("{node}: cut off etcd for {seconds} s"));
                self.hosts.get_mut(&node).unwrap().cut_off_etcd = until;
            }
            10 | 11 if node != other => {
                self.note(format_args!("{node} and {other}: cut for {seconds} s"));
                let pair = if node < other { (node, other) } else { (other, node) };
                self.cut.insert(pair, until);
            }
            12 => {
                self.note(format_args!("{node}: cut off everything for {seconds} s"));
                for other in NAMES.map(NodeName::new).into_iter().filter(|other| *other != node) {
                    let pair = if node < other { (node.clone(), other) } else { (other, node.clone()) };
                    self.cut.insert(pair, until);
                }
                self.hosts.get_mut(&node).unwrap().cut_off_etcd = until;
            }
            13 => {
                self.note(format_args!("etcd: away for {seconds} s"));
                self.etcd_away = until;
            }
            14 => self.ask_for_switchover(&node, &other),
            // two disks that are lost are more than what was promised bears
            15 if self.is_well() && self.hosts[&node].server.standby => {
                self.note(format_args!("{node}: disk lost"));
                let host = self.hosts.get_mut(&node).unwrap();
                host.server.die();
                host.server.lose();
            }
            _ => {}
        }
    }

    /// An operator's word, given to the agent of `node`.
    fn ask_for_switchover(&mut self, node: &NodeName, to: &NodeName) {
        let Some(agent) = self.hosts.get_mut(node).unwrap().agent.as_mut() else { return };
        if let Some(wish) = agent.wish_for(to) {
            self.note(format_args!("{node}: switchover to {to}"));
            let (revision, record) = wish;
            let written = self.etcd.write(self.now, revision, &record, &Claim::Word, 0);
            self.note(format_args!("written: {written}"));
        }
    }

    /// Clients write, replicas receive, what has arrived is acknowledged.
    fn flow(&mut self) {
        for name in NAMES.map(NodeName::new) {
            let now = self.now;
            let works = self.serves(&name);
            let host = self.hosts.get_mut(&name).unwrap();
            if works {
                host.server.take_settings(now);
            }
            let hands_over = host.agent.as_ref().is_some_and(Agent::hands_over);
            let server = &mut host.server;
            if works && !server.standby && !hands_over {
                for _ in 0..self.random.below(3) {
                    self.commits += 1;
                    self.waiting.push((name.clone(), server.log.len(), self.commits));
                    server.log.push(self.commits);
                }
            }
        }
        for name in NAMES.map(NodeName::new) {
            self.receive(&name);
        }
        self.acknowledge();
    }

    fn receive(&mut self, name: &NodeName) {
        let follows = self.hosts[name].server.follows.clone();
        for source in NAMES.map(NodeName::new).into_iter().filter(|source| source != name) {
            let connected = self.serves(name) && self.serves(&source) && self.are_connected(name, &source);
            let follower = &self.hosts[name].server;
            let wants = follower.standby && follows.as_ref() == Some(&source) && self.now >= follower.replayed;
            let sender = &self.hosts[&source].server;
            let sends = connected && wants && !sender.standby && sender.slots.contains(name);
            if sends && sender.is_ahead_of(follower) {
                assert!(
                    sender.log.starts_with(&follower.log),
                    "{name} streams from {source}, which has other log under the same timeline"
                );
                let received = self.random.below(5) as usize;
                let end = (follower.log.len() + received).min(sender.log.len());
                let (log, history) = (sender.log[follower.log.len()..end].to_vec(), sender.history.clone());
                let follower = &mut self.hosts.get_mut(name).unwrap().server;
                follower.log.extend(log);
                follower.history = history.into_iter().filter(|(_, begin)| *begin <= end).collect();
                follower.contact = self.now;
                let sender = &mut self.hosts.get_mut(&source).unwrap().server;
                sender.reported.insert(name.clone(), (end, self.now));
            } else if sends && self.random.one_in(10) {
                // one with log of its own reaches a sender of the old timeline, and tells how far it has got
                let end = follower.log.len();
                let sender = &mut self.hosts.get_mut(&source).unwrap().server;
                sender.reported.insert(name.clone(), (end, self.now));
            }
            // a sender whose receiver is gone is there until it notices
            let (now, notice, works) = (self.now, self.notice, self.serves(&source));
            let reported = &mut self.hosts.get_mut(&source).unwrap().server.reported;
            let lost = reported.get(name).is_some_and(|(_, at)| now.saturating_sub(*at) > notice + TICK);
            if works && lost {
                reported.remove(name);
            }
        }
    }

    fn acknowledge(&mut self) {
        let mut acknowledged = Vec::new();
        let (hosts, now) = (&self.hosts, self.now);
        self.waiting.retain(|(on, at, commit)| {
            let server = &hosts[on].server;
            if !server.up || server.log.get(*at) != Some(commit) {
                // its client was cut off
                return false;
            }
            if now < server.hangs || now < hosts[on].frozen {
                return true;
            }
            let has = |member: &&NodeName| server.reported.get(*member).is_some_and(|(end, _)| end > at);
            let arrived = server.waits_for.members.iter().filter(has).count() >= server.waits_for.quorum;
            if arrived {
                acknowledged.push((on.clone(), *commit));
            }
            !arrived
        });
        for (on, commit) in acknowledged {
            self.acknowledged.insert(commit);
            for (name, host) in &self.hosts {
                let newer = host.server.timeline() > self.hosts[&on].server.timeline();
                assert!(
                    host.server.standby || !newer || host.server.log.contains(&commit),
                    "{on} acknowledges {commit}, which {name}, the newer primary, does not have"
                );
            }
        }
    }

    fn step(&mut self) {
        self.flow();
        self.etcd.expire(self.now);
        self.now += TICK;
        let names = NAMES.map(NodeName::new);
        let first = self.random.below(3) as usize;
        for i in 0..3 {
            self.live(&names[(first + i) % 3]);
        }
        self.check();
    }

    /// A host's agent does what it does in a tick.
    fn live(&mut self, name: &NodeName) {
        let host = &self.hosts[name];
        if self.now < host.down || self.now < host.frozen {
            return;
        }
        if host.agent.is_none() && self.now >= host.agent_dead {
            let (clock, random) = (host.clock(self.now), self.random.clone());
            let agent = Agent::new(name.clone(), &host.server, self.policy, clock, random);
            self.hosts.get_mut(name).unwrap().agent = Some(agent);
        }
        if self.now < self.hosts[name].agent_frozen {
            return;
        }
        // taken out, so that it can look at the world
        let Some(mut agent) = self.hosts.get_mut(name).unwrap().agent.take() else { return };
        agent.live(self);
        self.hosts.get_mut(name).unwrap().agent = Some(agent);
    }

    fn check(&mut self) {
        let now = self.now;
        let guarded = |host: &&Host| {
            let alive = now >= host.frozen && now >= host.agent_frozen && now >= host.server.hangs;
            // one that finds a primary's server running listens first
            let settled = |agent: &Agent| agent.age(host.clock(now)) > TTL;
            alive && host.agent.as_ref().is_some_and(settled) && host.server.up && !host.server.standby
        };
        let writable: Vec<_> =
            self.hosts.iter().filter(|(_, host)| guarded(host)).map(|(name, _)| name.to_string()).collect();
        assert!(writable.len() <= 1, "{writable:?} are writable");
    }

    /// Called when a server has become the primary.
    fn promoted(&mut self, name: &NodeName) {
        self.promotions += 1;
        self.note(format_args!("{name}: promoted"));
        let log: BTreeSet<u32> = self.hosts[name].server.log.iter().copied().collect();
        let lost: Vec<_> = self.acknowledged.difference(&log).collect();
        assert!(lost.is_empty(), "{name} is promoted without acknowledged commits: {lost:?}");
    }

    fn is_well(&self) -> bool {
        let Some((record, _)) = &self.etcd.record else { return false };
        let primary = &self.hosts[&record.primary].server;
        let follows = |name: &NodeName| {
            *name == record.primary || primary.reported.get(name).is_some_and(|(end, _)| end + 10 > primary.log.len())
        };
        let all = record.promise.members.len() == 2 && !record.promoting && record.wish.is_none();
        self.serves(&record.primary) && !primary.standby && all && self.hosts.keys().all(follows)
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
                self.strike();
            }
            self.step();
        }
        self.note("peace");
        for host in self.hosts.values_mut() {
            for until in [&mut host.down, &mut host.frozen, &mut host.agent_dead, &mut host.agent_frozen] {
                *until = Duration::ZERO;
            }
            (host.cut_off_etcd, host.server.hangs) = (Duration::ZERO, Duration::ZERO);
        }
        self.cut.clear();
        self.etcd_away = Duration::ZERO;
        let (mut well, mut ticks) = (0, 0);
        while well < 20 {
            self.step();
            well = if self.is_well() { well + 1 } else { 0 };
            ticks += 1;
            assert!(ticks < PEACE, "not well after peace: {}", self.sentences());
        }
        let primary = self.etcd.record.as_ref().unwrap().0.primary.clone();
        let log: BTreeSet<u32> = self.hosts[&primary].server.log.iter().copied().collect();
        let lost: Vec<_> = self.acknowledged.difference(&log).collect();
        assert!(lost.is_empty(), "acknowledged commits are lost in the end: {lost:?}");
    }

    fn sentences(&self) -> String {
        let of = |(name, host): (&NodeName, &Host)| match &host.agent {
            Some(agent) => format!("{name}: {}", agent.sentence()),
            None => format!("{name}: no agent"),
        };
        let record = &self.etcd.record.as_ref().unwrap().0;
        format!("{:?}; record {record:?}", self.hosts.iter().map(of).collect::<Vec<_>>())
    }
}

/// One history; the numbers of promotions and of acknowledged commits in it, or how it failed.
fn run(seed: u64) -> Result<(u32, usize), String> {
    let mut world = World::new(seed);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    match ran {
        Ok(()) => Ok((world.promotions, world.acknowledged.len())),
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let last = &world.trail[world.trail.len().saturating_sub(80)..];
            Err(format!("seed {seed}: {}\n{}", what.unwrap_or_default(), last.join("\n")))
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "for whoever runs more of them, or one again")]
fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("MILLRACE_SEEDS") else { return 0..300 };
    match text.split_once("..") {
        Some((from, to)) => from.parse().unwrap()..to.parse().unwrap(),
        None => text.parse().unwrap()..text.parse::<u64>().unwrap() + 1,
    }
}

#[test]
fn supervisors_on_three_hosts() {
    let seeds = seeds();
    let (mut promotions, mut acknowledged) = (0, 0);
    for seed in seeds.clone() {
        let (promoted, of_clients) = run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        promotions += u64::from(promoted);
        acknowledged += of_clients;
    }
    let enough = seeds.end - seeds.start;
    assert!(acknowledged > 100 * usize::try_from(enough).unwrap(), "only {acknowledged} commits were acknowledged");
    assert!(enough < 100 || promotions > enough / 2, "only {promotions} promotions were simulated");
}
