//! Its session with etcd: the lease, what is heard, what is said.

use super::*;

impl Agent {
    fn fail_session(&mut self, world: &World) {
        self.shared.connected = false;
        (self.keep, self.put) = (None, None);
        self.try_again = world.now + self.random.ticks(20);
    }

    pub(super) fn keep_session(&mut self, world: &mut World, clock: Duration) {
        let reaches = world.reaches_etcd(&self.name);
        if !self.shared.connected {
            if reaches && world.now >= self.try_again {
                self.begin_session(world, clock);
            }
            return;
        }
        self.keep_lease(world, clock, reaches);
        self.listen(world, clock, reaches);
        self.put_word(world, clock, reaches);
    }

    fn begin_session(&mut self, world: &mut World, clock: Duration) {
        let etcd = &mut world.etcd;
        let until = world.now + TTL + self.random.ticks(20);
        if self.lease == 0 || !etcd.keep(self.lease, until) {
            self.lease = etcd.grant(until);
        }
        // asked for a little earlier
        self.good = clock.saturating_sub(self.random.ticks(4)) + VALID;
        self.shared = Shared {
            connected: true,
            unreadable: false,
            record: etcd.record.clone(),
            officer: etcd.officer.clone(),
            members: etcd
                .members
                .iter()
                .map(|(name, (member, _))| (name.clone(), Heard { member: member.clone(), at: clock }))
                .collect(),
            history: BTreeMap::new(),
        };
        if etcd.take_along(world.now, &self.name, self.lease) {
            self.shared.officer.clone_from(&etcd.officer);
            self.validity.begin(self.good);
        }
        self.heard = etcd.events.len();
        self.kept = world.now;
        self.next = world.now;
        // its word is put again
        (self.keep, self.put) = (None, None);
    }

    fn keep_lease(&mut self, world: &mut World, clock: Duration, reaches: bool) {
        if self.keep.is_none() && world.now >= self.kept + BEAT {
            self.kept = world.now;
            let (there, back) = (self.random.way(), self.random.way());
            let (arrives, answers) = (world.now + there, world.now + there + back);
            self.keep = Some(Asked { what: (), asked: clock, arrives, answers, answer: None });
        }
        let Some(keep) = &mut self.keep else { return };
        if keep.answer.is_none() && world.now >= keep.arrives {
            match reaches {
                true => keep.answer = Some(world.etcd.keep(self.lease, world.now + TTL + self.random.ticks(20))),
                // lost on its way
                false => keep.arrives = Duration::MAX,
            }
        }
        match keep.answer {
            Some(true) if world.now >= keep.answers && reaches => {
                self.good = keep.asked + VALID;
                self.keep = None;
                let own = self.shared.officer.as_ref();
                if own.is_some_and(|(officer, of)| officer.node == self.name && *of == self.lease) {
                    self.validity.extend(self.good, clock);
                }
            }
            Some(false) if world.now >= keep.answers && reaches => {
                self.lease = 0;
                self.fail_session(world);
            }
            _ if clock.saturating_sub(keep.asked) >= BEAT * 2 => self.fail_session(world),
            _ => {}
        }
    }

    fn listen(&mut self, world: &mut World, clock: Duration, reaches: bool) {
        while self.shared.connected && reaches {
            let Some((at, events)) = world.etcd.events.get(self.heard) else { return };
            if self.heard_next == Duration::ZERO {
                // a watch is another stream than that of answers
                let late = if self.random.one_in(100) { self.random.ticks(70) } else { self.random.way() };
                self.heard_next = *at + late;
            }
            if world.now < self.heard_next {
                return;
            }
            (self.heard, self.heard_next) = (self.heard + 1, Duration::ZERO);
            for event in events.clone() {
                self.take(event, clock);
            }
            // a change wakes the loop
            self.next = self.next.min(world.now + self.random.ticks(2));
        }
    }

    fn take(&mut self, event: Event, clock: Duration) {
        match event {
            Event::Record(record, revision) => self.shared.record = Some((record, revision)),
            Event::Office(officer) => {
                self.shared.officer = officer;
                let own = self.shared.officer.as_ref();
                if own.is_some_and(|(officer, of)| officer.node == self.name && *of == self.lease) {
                    self.validity.begin(self.good);
                }
            }
            Event::Member(name, Some(member)) => {
                self.shared.members.insert(name, Heard { member, at: clock });
            }
            Event::Member(name, None) => drop(self.shared.members.remove(&name)),
        }
    }

    fn put_word(&mut self, world: &mut World, clock: Duration, reaches: bool) {
        if self.put.is_none()
            && let Some((member, said)) = self.word.take()
            && clock.saturating_sub(said) < TTL
        {
            let arrives = world.now + self.random.way();
            let answers = arrives + self.random.way();
            self.put = Some(Asked { what: member, asked: clock, arrives, answers, answer: None });
        }
        let Some(put) = &mut self.put else { return };
        if put.answer.is_none() && world.now >= put.arrives && reaches {
            put.answer = Some(world.etcd.put_member(world.now, &self.name, put.what.clone(), self.lease));
        }
        match put.answer {
            Some(true) if world.now >= put.answers => self.put = None,
            Some(false) => self.fail_session(world),
            _ if clock.saturating_sub(put.asked) >= ANSWER => self.fail_session(world),
            _ => {}
        }
    }
}
