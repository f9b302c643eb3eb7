//! A PostgreSQL server and its disk.

use std::collections::VecDeque;

use super::*;

pub(super) struct Server {
    pub(super) part: Part,
    // the disk
    pub(super) exists: bool,
    pub(super) standby: bool,
    pub(super) log: Log,
    /// Timelines, each with where it begins.
    pub(super) history: Vec<(u32, usize)>,
    pub(super) slots: [bool; 3],
    pub(super) was_primary: bool,
    pub(super) vote: Option<u64>,
    // the process
    pub(super) up: bool,
    /// True time until which it does not run.
    pub(super) hangs: Duration,
    /// Its upstream, and the one that it will turn to.
    pub(super) follows: Option<Place>,
    pub(super) turns: Option<(Option<Place>, Duration)>,
    /// What its processes really wait for; a new setting takes a while to be in force.
    pub(super) waits_for: Promise,
    pub(super) set: Option<(Promise, Duration)>,
    /// It has read its own log by then.
    pub(super) replayed: Duration,
    /// When something came from its upstream.
    pub(super) contact: Duration,
    /// What receivers have told, and when.
    pub(super) reported: [Option<(usize, Duration)>; 3],
    /// Where commits are in its log that clients wait for.
    pub(super) waiting: VecDeque<usize>,
}

impl Server {
    pub(super) fn new(primary: bool, part: Part) -> Self {
        Self {
            part,
            exists: true,
            standby: !primary,
            log: Log::new(),
            history: vec![(1, 0)],
            slots: [primary; 3],
            was_primary: primary,
            vote: None,
            up: false,
            hangs: Duration::ZERO,
            follows: None,
            turns: None,
            waits_for: Promise::none(),
            set: None,
            replayed: Duration::ZERO,
            contact: Duration::ZERO,
            reported: [None; 3],
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn timeline(&self) -> u32 {
        self.history.last().unwrap().0
    }

    pub(super) fn end(&self) -> Lsn {
        self.log.end()
    }

    /// A process of it takes what it has been told.
    pub(super) fn take_settings(&mut self, now: Duration) {
        if let Some((promise, _)) = self.set.take_if(|(_, at)| *at <= now) {
            self.waits_for = promise;
        }
        if let Some((to, _)) = self.turns.take_if(|(_, at)| *at <= now) {
            self.follows = to;
        }
    }

    /// The session that is asked has taken the setting before the rest of the server.
    pub(super) fn setting(&self) -> String {
        self.set.as_ref().map_or(&self.waits_for, |(promise, _)| promise).setting()
    }

    /// How much of its log as many of the members of `promise` have as that promises.
    pub(super) fn received_by(&self, promise: &Promise) -> usize {
        if promise.is_none() {
            return usize::MAX;
        }
        let mut ends = [0; 3];
        for (end, member) in ends.iter_mut().zip(&promise.members) {
            *end = self.reported[place_of(member)].map_or(0, |(end, _)| end);
        }
        ends.sort_unstable_by(|one, other| other.cmp(one));
        ends.get(promise.quorum - 1).copied().unwrap_or(0)
    }

    /// It would serve `follower`, as PostgreSQL judges it: by timelines and positions.
    pub(super) fn is_ahead_of(&self, follower: &Self) -> bool {
        let timeline = follower.timeline();
        let Some(i) = self.history.iter().position(|(of, _)| *of == timeline) else { return false };
        let end = self.history.get(i + 1).map_or(self.log.len(), |(_, begin)| *begin);
        follower.log.len() <= end
    }

    pub(super) fn start(&mut self, follows: Option<Place>, promise: Promise, replayed: Duration) {
        assert!(self.exists && !self.up);
        (self.up, self.hangs) = (true, Duration::ZERO);
        (self.follows, self.turns) = (follows, None);
        // a server that starts has its setting from the first commit on
        (self.waits_for, self.set) = (promise, None);
        self.replayed = if self.standby { replayed } else { Duration::ZERO };
        self.contact = Duration::ZERO;
        self.reported = [None; 3];
    }

    pub(super) fn promote(&mut self) {
        assert!(self.standby);
        self.standby = false;
        (self.follows, self.turns) = (None, None);
        self.history.push((self.timeline() + 1, self.log.len()));
        (self.slots, self.reported) = ([false; 3], [None; 3]);
        self.was_primary = true;
    }

    pub(super) fn die(&mut self) {
        self.up = false;
        self.reported = [None; 3];
        // their clients are cut off
        self.waiting.clear();
    }

    pub(super) fn lose(&mut self) {
        (self.exists, self.standby, self.was_primary) = (false, true, false);
        self.log = Log::default();
        self.history = vec![(0, 0)];
    }

    /// Whoever worked on it is gone.
    pub(super) fn interrupt(&mut self, job: Option<&Action>) {
        if let Some(Action::MakeReplica { .. } | Action::Rewind { .. }) = job {
            self.lose();
        }
    }

    /// A base backup, or a rewind.
    pub(super) fn copy(&mut self, source: &Self) {
        self.log.copy(&source.log);
        self.history.clone_from(&source.history);
        (self.exists, self.standby, self.up, self.was_primary) = (true, true, false, false);
        self.slots = [false; 3];
    }
}
