//! One supervisor: its loop, its session with etcd, its guard and its proof.

use std::sync::Arc;

use millrace_base::Micros;
use millrace_pg::catalog::ServerState;

use super::{etcd::Event, *};
use crate::{
    decide::decide,
    peers::record_of,
    store::{Heard, Member, Shared, Validity},
};

mod session;

/// As in `store::etcd`.
const VALID: Duration = Duration::from_millis(2250);
const BEAT: Duration = Duration::from_millis(375);
const ANSWER: Duration = Duration::from_secs(1);
/// As in `supervisor`.
const LOOKS: u32 = 20;
const IN_FORCE: Duration = Duration::from_secs(2);
const VOTE_AGAIN: Duration = Duration::from_secs(1);
const SAY: Duration = Duration::from_secs(1);

/// A question that is on its way: by true time, when it arrives and when its answer does.
struct Asked<T> {
    what: T,
    /// By the agent's clock.
    asked: Duration,
    arrives: Duration,
    answers: Duration,
    answer: Option<bool>,
}

struct Write {
    revision: i64,
    record: ClusterRecord,
    claim: Claim,
    lease: i64,
}

/// What is known of the setting that was seen: its text, since when, and the end of the log once it was in force.
type Seen = (String, Duration, Option<usize>);

pub(super) struct Agent {
    name: NodeName,
    place: Place,
    began: Duration,
    random: Random,
    peers: Peers,
    intent: Intent,
    // the session
    shared: Shared,
    lease: i64,
    good: Duration,
    validity: Validity,
    heard: usize,
    heard_next: Duration,
    keep: Option<Asked<()>>,
    kept: Duration,
    word: Option<(Arc<Member>, Duration)>,
    put: Option<Asked<Arc<Member>>>,
    try_again: Duration,
    // the guard and the proof
    armed: bool,
    lapses: u32,
    promise: Option<Promise>,
    beat: Option<(Duration, usize)>,
    // the loop
    next: Duration,
    looked: Option<(Observed, Duration)>,
    write: Option<Asked<Write>>,
    seen: Option<Observed>,
    said: Option<Duration>,
    primary_lsn: Option<Lsn>,
    handed_over: Option<LogEnd>,
    roles_ready: bool,
    // what it remembers of its node
    adopted: bool,
    told: Promise,
    follows: Option<NodeName>,
    silent_since: Option<Duration>,
    absent_since: Option<Duration>,
    not_streaming_since: Option<Duration>,
    heard_at: Duration,
    received: Option<Lsn>,
    heard_new: bool,
    deaf: bool,
    voted_at: Option<Duration>,
    failure: Option<Failure>,
    setting: Option<Seen>,
    job: Option<(Action, Duration, Duration)>,
    sentence: String,
}

impl Agent {
    pub(super) fn new(name: NodeName, server: &Server, policy: Policy, clock: Duration, random: Random) -> Self {
        Self {
            began: clock,
            random,
            peers: Peers::new(Some(name.clone())),
            intent: Intent {
                goal: Goal::Run,
                primary: NodeName::new("a"),
                term: 0,
                system_id: None,
                promoting: false,
                promise: Promise::none(),
                paused: false,
                wish: None,
                said: Default::default(),
                restored: None,
                policy,
            },
            place: place_of(&name),
            name,
            shared: Shared::default(),
            lease: 0,
            good: Duration::ZERO,
            validity: Validity { until: clock + VALID, lapses: 0 },
            heard: 0,
            heard_next: Duration::ZERO,
            keep: None,
            kept: Duration::ZERO,
            word: None,
            put: None,
            try_again: Duration::ZERO,
            armed: server.exists && !server.standby,
            lapses: 0,
            promise: None,
            beat: None,
            next: Duration::ZERO,
            looked: None,
            write: None,
            seen: None,
            said: None,
            primary_lsn: None,
            handed_over: None,
            roles_ready: false,
            adopted: !server.up,
            told: Promise::none(),
            follows: None,
            silent_since: None,
            absent_since: Some(Duration::ZERO),
            not_streaming_since: None,
            heard_at: clock,
            received: None,
            heard_new: false,
            deaf: false,
            voted_at: None,
            failure: None,
            setting: None,
            job: None,
            sentence: String::new(),
        }
    }

    pub(super) fn job(&self) -> Option<&Action> {
        self.job.as_ref().map(|(action, ..)| action)
    }

    pub(super) fn age(&self, clock: Duration) -> Duration {
        clock.saturating_sub(self.began)
    }

    pub(super) fn hands_over(&self) -> bool {
        matches!(self.job, Some((Action::HandOver, ..)))
    }

    pub(super) fn sentence(&self) -> String {
        let office = self.seen.as_ref().map(|seen| seen.office);
        format!("{} ({office:?}, term {})", self.sentence, self.intent.term)
    }

    /// What an operator's word would make of the record, as this agent has heard it.
    pub(super) fn wish_for(&mut self, to: &NodeName) -> Option<(i64, ClusterRecord)> {
        let fit = self.shared.connected && self.intent.wish.is_none() && !self.intent.promoting;
        // before the record has been heard there is nothing to change
        if !fit || *to == self.intent.primary || self.intent.term == 0 {
            return None;
        }
        let wish = Some(Wish::Switchover { to: to.clone() });
        let intent = Intent { wish, ..self.intent.clone() };
        let record = record_of(&intent, &self.intent, self.handed_over, &Claim::Word);
        Some((self.peers.ask(&Claim::Word), record))
    }

    pub(super) fn live(&mut self, world: &mut World) {
        let clock = world.hosts[self.place].clock(world.now);
        self.keep_session(world, clock);
        self.guard(world, clock);
        self.prove(world, clock);
        self.finish(world, clock);
        self.notice_death(world, clock);
        self.turn(world, clock);
    }

    // ---------------------------------------------------------------------------------------- the guard and the proof

    fn guard(&mut self, world: &mut World, clock: Duration) {
        let lapsed = clock >= self.validity.until || self.validity.lapses != self.lapses;
        self.lapses = self.validity.lapses;
        let server = &mut world.hosts[self.place].server;
        if self.armed && lapsed && server.up {
            server.die();
            world.counts.guarded += 1;
            world.note(format_args!("{}: guard kills", self.name));
        }
    }

    fn prove(&mut self, world: &mut World, clock: Duration) {
        let left = self.validity.until.saturating_sub(clock);
        let writes = world.serves(self.place) && !world.hosts[self.place].server.standby;
        if !self.armed || left > HOLD / 2 || !writes {
            self.beat = None;
            return;
        }
        let (asked, wanted) = match self.beat {
            Some(beat) => beat,
            None => {
                let record = world.record();
                (clock, world.hosts[self.place].server.log.push(record) + 1)
            }
        };
        self.beat = Some((asked, wanted));
        if clock.saturating_sub(asked) >= HOLD / 2 {
            self.beat = None;
            return;
        }
        let server = &world.hosts[self.place].server;
        let received = match &self.promise {
            Some(promise) if !promise.is_none() => server.received_by(promise),
            _ => {
                let others = world.names.iter().filter(|name| **name != self.name);
                server.received_by(&Promise::new(others.cloned().collect(), 2))
            }
        };
        if received >= wanted {
            self.validity.extend(asked + HOLD * 2 / 3, clock);
            world.counts.proofs += 1;
            self.beat = None;
        }
    }

    // --------------------------------------------------------------------------------------------------- its own node

    /// The end of a server is seen at once, unless a step owns it.
    fn notice_death(&mut self, world: &mut World, clock: Duration) {
        let server = &world.hosts[self.place].server;
        let ran = self.received.is_some() || self.silent_since.is_some() || self.setting.is_some();
        if server.up || !self.adopted || self.job.is_some() || !ran {
            return;
        }
        self.forget();
        self.fail(FailureKind::Crashed, "the server was killed by signal 9", clock);
        self.next = world.now;
    }

    fn forget(&mut self) {
        (self.received, self.silent_since, self.setting, self.deaf) = (None, None, None, false);
    }

    fn fail(&mut self, kind: FailureKind, what: &str, clock: Duration) {
        let tries = self.failure.as_ref().map_or(1, |failure| failure.next_try + 1);
        self.failure = Some(Failure {
            kind,
            what: what.to_owned(),
            what_to_do: None,
            at: clock,
            not_before: clock + ticks(&self.random, 20),
            next_try: tries,
        });
    }

    fn look(&mut self, world: &mut World, clock: Duration) -> Observed {
        let serves = world.serves(self.place);
        let (now, notice) = (world.now, world.notice);
        let server = &world.hosts[self.place].server;
        let answers = serves && self.adopted && self.job.is_none();
        let primary = self.intent.primary == self.name;
        if self.job.is_none() {
            let silent = server.up && self.adopted && !answers;
            self.silent_since = silent.then(|| self.silent_since.unwrap_or(clock));
        }
        let mut arrived = false;
        let state = answers.then(|| {
            let deaf = server.standby && server.follows.is_none();
            let before = std::mem::replace(&mut self.deaf, deaf);
            let replayed = now >= server.replayed;
            let streaming = server.standby
                && replayed
                && server.follows.is_some()
                && server.contact > Duration::ZERO
                && now.saturating_sub(server.contact) <= notice;
            let waits = server.standby && !streaming;
            self.not_streaming_since = waits.then(|| self.not_streaming_since.unwrap_or(clock));
            let end = server.end();
            let lsn = if replayed { end } else { Lsn(end.0.saturating_sub(u64::from(self.random.below(4)))) };
            ServerState {
                in_recovery: server.standby,
                system_id: OURS,
                timeline: server.timeline(),
                lsn,
                received_lsn: (server.standby && replayed).then_some(end),
                started_at: Micros(0),
                streaming,
                deaf: deaf && before,
                receiver_slot: None,
                synchronous_standby_names: server.setting(),
                pending_restart: Vec::new(),
            }
        });
        if let Some(state) = &state {
            if state.received_lsn != self.received {
                (self.received, self.heard_new) = (state.received_lsn, true);
            }
            if primary && !state.in_recovery {
                self.primary_lsn = Some(state.lsn);
                arrived = self.arrived(server, clock);
            }
        }
        let slots = world.names.iter().zip(server.slots).filter(|(_, made)| *made);
        let slots = answers.then(|| slots.map(|(name, _)| slot_of(name, Lsn(0))).collect::<Vec<_>>());
        let whole = DataState::Whole { system_id: OURS, standby: server.standby };
        let view = NodeView {
            data: if server.exists { whole } else { DataState::Absent },
            was_primary: server.was_primary,
            rogue: false,
            restored: None,
            process: match (server.up, self.adopted) {
                (true, true) => ProcessState::Running { pid: 9, ready: true },
                (true, false) => ProcessState::Unadopted { pid: 9 },
                (false, _) => ProcessState::None,
            },
            may_write: server.up,
            dying: false,
            disk: crate::DiskView::default(),
            server: state,
            slots: slots.clone(),
            silent_since: self.silent_since,
            not_streaming_since: if primary { None } else { self.not_streaming_since },
            within: None,
            heard_at: self.heard_at,
            part: server.part,
            absent_since: self.absent_since,
            vote: server.vote,
            follows: self.follows.clone(),
            busy: self.job.as_ref().map(|(action, since, _)| (format!("{action:?}"), *since)),
            failure: self.failure.clone(),
        };
        let serves_as_primary = primary && answers && !server.standby;
        Observed {
            nodes: BTreeMap::from([(self.name.clone(), view)]),
            office: Office::Unknown,
            slots: slots.filter(|_| serves_as_primary),
            roles_ready: self.roles_ready,
            primary_lsn: self.primary_lsn,
            logical_slots: BTreeSet::new(),
            handed_over: self.handed_over,
            arrived,
        }
    }

    /// As the supervisor finds out whether what was acknowledged earlier is where the present setting says.
    fn arrived(&mut self, server: &Server, clock: Duration) -> bool {
        let text = server.setting();
        if self.setting.as_ref().is_none_or(|(seen, ..)| *seen != text) {
            self.setting = Some((text.clone(), clock, None));
        }
        let Some((_, since, noted)) = &mut self.setting else { return false };
        if noted.is_none() && clock.saturating_sub(*since) >= IN_FORCE {
            *noted = Some(server.log.len());
        }
        let Some(noted) = *noted else { return false };
        server.received_by(&Promise::parse(&text)) >= noted
    }

    // ------------------------------------------------------------------------------------------------------- the loop

    fn turn(&mut self, world: &mut World, clock: Duration) {
        if !self.written(world, clock) {
            return;
        }
        if let Some((observed, at)) = self.looked.take() {
            match world.now >= at {
                true => self.act(world, observed, clock),
                false => self.looked = Some((observed, at)),
            }
            return;
        }
        if world.now < self.next {
            return;
        }
        self.hear(&world.names, clock);
        let observed = self.look(world, clock);
        // a server that hangs is waited for
        let answer = if self.random.one_in(50) { ticks(&self.random, 50) } else { ticks(&self.random, 3) };
        self.looked = Some((observed, world.now + answer));
    }

    /// Whether the loop goes on: what was written has been answered, or nothing was.
    fn written(&mut self, world: &mut World, clock: Duration) -> bool {
        let reaches = world.reaches_etcd(self.place);
        let Some(asked) = &mut self.write else { return true };
        if asked.answer.is_none() && world.now >= asked.arrives {
            match reaches {
                true => {
                    let Write { revision, record, claim, lease } = &asked.what;
                    let done = world.etcd.write(world.now, *revision, record, claim, *lease);
                    asked.answer = Some(done);
                    world.counts.elections += u64::from(done && matches!(claim, Claim::Take(_)) && record.promoting);
                    let ClusterRecord { term, primary, promise, .. } = record;
                    world.note(format_args!("{}: {claim:?} term {term} of {primary}, {promise:?}: {done}", self.name));
                }
                false => asked.arrives = Duration::MAX,
            }
        }
        let answered = asked.answer.filter(|_| world.now >= asked.answers && reaches);
        if answered.is_none() && clock.saturating_sub(asked.asked) < ANSWER {
            return false;
        }
        let Some(asked) = self.write.take() else { return true };
        let revision = asked.what.revision;
        self.peers.answered(revision, &asked.what.claim, answered, clock);
        if answered != Some(false) {
            self.promise = None;
        }
        true
    }

    fn hear(&mut self, names: &[NodeName; 3], clock: Duration) {
        let Some(word) = self.peers.hear(self.shared.clone(), names.iter(), &self.intent, clock) else { return };
        let before = std::mem::replace(&mut self.intent, word.intent);
        let own = self.intent.primary == self.name;
        self.promise = self.peers.promise().cloned();
        self.armed = own;
        if word.first {
            if own {
                self.told = self.intent.promise.clone();
            }
        } else if self.intent.term != before.term {
            (self.primary_lsn, self.handed_over) = (None, None);
            if self.intent.primary == before.primary {
                if own {
                    self.failure = None;
                }
            } else {
                self.told = match &self.seen {
                    Some(seen) if own && self.intent.promoting => before.first_promise(&self.name, seen),
                    _ => Promise::none(),
                };
                self.absent_since = Some(clock);
            }
        }
        let unheard = self.intent.term != before.term || self.peers.is_vacant();
        self.handed_over = word.handed_over.or(self.handed_over.filter(|_| !unheard));
    }

    fn act(&mut self, world: &mut World, mut observed: Observed, clock: Duration) {
        if std::mem::take(&mut self.heard_new) {
            self.heard_at = clock;
        }
        observed.nodes.get_mut(&self.name).unwrap().heard_at = self.heard_at;
        let leave = Leave { lease: self.lease, valid_until: self.validity.until };
        self.peers.add(&mut observed, world.names.iter(), &self.intent, leave, clock);
        self.primary_lsn = observed.primary_lsn;
        let mut plan = self.peers.restrain(decide(&observed, &self.intent, clock), &self.intent);
        self.say(&observed, clock);
        let mut acted = false;
        if let Some(own) = plan.nodes.remove(&self.name) {
            for action in own.actions {
                self.begin(world, action, clock);
                acted = true;
            }
            self.sentence = own.sentence;
        }
        let quick =
            matches!(observed.office, Office::Vacant { .. }) || self.intent.promoting || self.intent.wish.is_some();
        let pause = if acted || quick { 2 } else { LOOKS };
        self.next = world.now + ticks(&self.random, pause);
        let change = plan.change.and_then(|change| Some((self.peers.claim(&change, &self.intent)?, change)));
        if let Some((claim, change)) = change {
            let intent = self.intent.after(&change);
            self.write(world, &intent, claim, clock);
        } else if self.peers.is_to_be_made_certain(&self.intent, clock) {
            self.write(world, &self.intent.clone(), Claim::Hold, clock);
        }
        self.seen = Some(observed);
    }

    fn say(&mut self, observed: &Observed, clock: Duration) {
        let urgent = self.intent.wish.is_some() || matches!(observed.office, Office::Vacant { .. });
        let view = &observed.nodes[&self.name];
        let news = self.word.is_none()
            && self.shared.members.get(&self.name).is_none_or(|heard| {
                let before = &heard.member.view;
                let server =
                    |view: &NodeView| view.server.as_ref().map(|s| (s.in_recovery, s.timeline, s.streaming, s.deaf));
                (before.vote, &before.busy, &before.process, server(before))
                    != (view.vote, &view.busy, &view.process, server(view))
            });
        if !urgent && !news && self.said.is_some_and(|at| clock.saturating_sub(at) < SAY) {
            return;
        }
        self.said = Some(clock);
        let member = Member { view: view.clone(), now: clock, roles_ready: self.roles_ready };
        self.word = Some((Arc::new(member), clock));
    }

    fn write(&mut self, world: &World, intent: &Intent, claim: Claim, clock: Duration) {
        if !self.shared.connected || self.lease == 0 {
            return;
        }
        let record = record_of(intent, &self.intent, self.handed_over, &claim);
        let revision = self.peers.ask(&claim);
        let (there, back) = (way(&self.random), way(&self.random));
        self.write = Some(Asked {
            what: Write { revision, record, claim, lease: self.lease },
            asked: clock,
            arrives: world.now + there,
            answers: world.now + there + back,
            answer: None,
        });
    }

    fn begin(&mut self, world: &mut World, action: Action, clock: Duration) {
        let now = world.now;
        let (soon, later) = (now + TICK * 2, now + TICK * 20);
        let answers = world.serves(self.place);
        let known = self.intent.system_id.is_some();
        let again = self.voted_at.is_some_and(|at| clock.saturating_sub(at) < VOTE_AGAIN);
        if matches!(action, Action::Vote { .. }) && again {
            return;
        }
        world.note(format_args!("{}: {action:?}", self.name));
        let server = &mut world.hosts[self.place].server;
        let shortly = now + ticks(&self.random, 10);
        match action {
            Action::Adopt => {
                let upstream = (self.intent.primary != self.name).then(|| self.intent.primary.clone());
                self.follows = upstream.filter(|_| known && server.vote != Some(self.intent.term));
                let deposed = self.name != self.intent.primary && !server.standby;
                if known && !deposed {
                    server.turns = Some((self.follows.as_ref().map(place_of), shortly));
                    server.set = Some((self.told.clone(), now + ticks(&self.random, 30)));
                }
                self.adopted = true;
                self.forget();
            }
            Action::Start { from } => {
                if server.up {
                    return;
                }
                if !server.exists {
                    self.fail(FailureKind::Other, "there is no data", clock);
                    return;
                }
                self.follows.clone_from(&from);
                self.forget();
                self.not_streaming_since = None;
                if self.name == self.intent.primary && !self.intent.promoting {
                    self.handed_over = None;
                    server.was_primary = true;
                }
                server.start(from.as_ref().map(place_of), self.told.clone(), now + ticks(&self.random, 30));
            }
            Action::Fence | Action::HandOver | Action::Stop(_) => {
                self.forget();
                self.job = Some((action, clock, soon));
            }
            Action::MakeReplica { .. } | Action::Rewind { .. } => {
                self.forget();
                server.die();
                self.job = Some((action, clock, later));
            }
            Action::Promote => {
                if server.standby && answers {
                    (self.follows, self.setting) = (None, None);
                    server.promote();
                    server.set = Some((self.told.clone(), now + ticks(&self.random, 30)));
                    world.promoted(self.place);
                }
            }
            Action::Vote { term } => {
                world.counts.votes += 1;
                (server.vote, self.voted_at, self.follows) = (Some(term), Some(clock), None);
                server.turns = Some((None, shortly));
            }
            Action::LetGo => {
                self.follows = None;
                server.turns = Some((None, shortly));
            }
            Action::Follow { from } => {
                self.follows = Some(from.clone());
                server.turns = Some((Some(place_of(&from)), shortly));
            }
            Action::SetPromise(promise) => {
                self.told = promise;
                self.setting = None;
                server.set = Some((self.told.clone(), now + ticks(&self.random, 30)));
            }
            Action::EnsureRoles => self.roles_ready |= answers,
            Action::CreateSlot { replica } => {
                if answers {
                    server.slots[place_of(&replica)] = true;
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, world: &mut World, clock: Duration) {
        let Some((action, ..)) = self.job.take_if(|(_, _, until)| *until <= world.now) else { return };
        let serves = world.serves(self.place);
        match action {
            Action::Fence | Action::Stop(_) => {
                world.hosts[self.place].server.die();
                world.counts.fences += 1;
                self.fail(FailureKind::Crashed, "the server did not answer and was killed", clock);
            }
            Action::HandOver if serves => self.hand_over(world),
            Action::HandOver if world.hosts[self.place].server.up => {}
            Action::HandOver => self.fail(FailureKind::Crashed, "the server ended while it handed over", clock),
            Action::MakeReplica { from, .. } | Action::Rewind { from } => {
                let from = place_of(&from);
                let gives = world.serves(from) && world.are_connected(self.place, from);
                let Ok([own, source]) = world.hosts.get_disjoint_mut([self.place, from]) else {
                    panic!("{} is to be a replica of itself", self.name)
                };
                if !gives || source.server.standby {
                    self.fail(FailureKind::Other, "the source does not answer", clock);
                    return;
                }
                own.server.copy(&source.server);
                world.counts.rebuilt += 1;
                source.server.slots[self.place] = true;
                self.failure = None;
            }
            other => panic!("{other:?}"),
        }
        self.next = world.now;
    }

    /// It ends in order once everything has been sent to those who receive it, the record of its end included.
    fn hand_over(&mut self, world: &mut World) {
        world.counts.handed_over += 1;
        let last = world.record();
        let end = world.hosts[self.place].server.log.push(last);
        for other in (0..3).filter(|other| *other != self.place) {
            let serves = world.serves(other) && world.are_connected(self.place, other);
            let Ok([Host { server: sender, .. }, Host { server: receiver, .. }]) =
                world.hosts.get_disjoint_mut([self.place, other])
            else {
                unreachable!("it does not follow itself")
            };
            let follows = receiver.standby && receiver.follows == Some(self.place) && world.now >= receiver.replayed;
            if serves && follows && sender.slots[other] && sender.is_ahead_of(receiver) {
                receiver.log.copy(&sender.log);
                receiver.history.clone_from(&sender.history);
            }
        }
        let server = &mut world.hosts[self.place].server;
        let timeline = server.timeline();
        server.die();
        self.handed_over = Some(LogEnd { lsn: Lsn(end as u64), timeline });
    }
}
