//! Its session with etcd: the lease, what is heard, what is said.

use super::*;

impl Agent {
    fn fail_session(&mut self, world: &World) {
        self.shared.connected = false;
        (self.keep, self.put) = (None, None);
        self.try_again = world.now + ticks(&self.random, 20);
    }

    pub(super) fn keep_session(&mut self, world: &mut World, clock: Duration) {
        let reaches = world.reaches_etcd(self.place);
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
        let until = world.now + TTL + ticks(&self.random, 20);
        if self.lease == 0 || !etcd.keep(self.lease, until) {
            self.lease = etcd.grant(until);
        }
        // asked for a little earlier
        self.good = clock.saturating_sub(ticks(&self.random, 4)) + VALID;
        self.shared = Shared {
            connected: true,
            unreadable: false,
            record: etcd.record.clone(),
            officer: etcd.officer.clone(),
            members: (etcd.members.iter().zip(&world.names))
                .filter_map(|(member, name)| {
                    let member = member.as_ref()?.0.clone();
                    Some((name.clone(), Heard { member, at: clock }))
                })
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
            let (there, back) = (way(&self.random), way(&self.random));
            let (arrives, answers) = (world.now + there, world.now + there + back);
            self.keep = Some(Asked { what: (), asked: clock, arrives, answers, answer: None });
        }
        let Some(keep) = &mut self.keep else { return };
        if keep.answer.is_none() && world.now >= keep.arrives {
            match reaches {
                true => keep.answer = Some(world.etcd.keep(self.lease, world.now + TTL + ticks(&self.random, 20))),
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
                let late = if self.random.one_in(100) { ticks(&self.random, 70) } else { way(&self.random) };
                self.heard_next = *at + late;
            }
            if world.now < self.heard_next {
                return;
            }
            (self.heard, self.heard_next) = (self.heard + 1, Duration::ZERO);
            for event in events {
                self.take(event, &world.names, clock);
            }
            // a change wakes the loop
            self.next = self.next.min(world.now + ticks(&self.random, 2));
        }
    }

    fn take(&mut self, event: &Event, names: &[NodeName; 3], clock: Duration) {
        match event {
            Event::Record(record, revision) => self.shared.record = Some((record.clone(), *revision)),
            Event::Office(officer) => {
                self.shared.officer.clone_from(officer);
                let own = self.shared.officer.as_ref();
                if own.is_some_and(|(officer, of)| officer.node == self.name && *of == self.lease) {
                    self.validity.begin(self.good);
                }
            }
            Event::Member(place, Some(member)) => {
                let heard = Heard { member: member.clone(), at: clock };
                self.shared.members.insert(names[*place].clone(), heard);
            }
            Event::Member(place, None) => drop(self.shared.members.remove(&names[*place])),
        }
    }

    fn put_word(&mut self, world: &mut World, clock: Duration, reaches: bool) {
        if self.put.is_none()
            && let Some((member, said)) = self.word.take()
            && clock.saturating_sub(said) < TTL
        {
            let arrives = world.now + way(&self.random);
            let answers = arrives + way(&self.random);
            self.put = Some(Asked { what: member, asked: clock, arrives, answers, answer: None });
        }
        let Some(put) = &mut self.put else { return };
        if put.answer.is_none() && world.now >= put.arrives && reaches {
            put.answer = Some(world.etcd.put_member(world.now, self.place, put.what.clone(), self.lease));
        }
        match put.answer {
            Some(true) if world.now >= put.answers => self.put = None,
            Some(false) => self.fail_session(world),
            _ if clock.saturating_sub(put.asked) >= ANSWER => self.fail_session(world),
            _ => {}
        }
    }
}
