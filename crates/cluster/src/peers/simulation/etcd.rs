//! The store: one state that everyone's changes and leases meet in.

use std::sync::Arc;

use super::*;
use crate::store::{Member, Officer};

#[derive(Clone)]
pub(super) enum Event {
    Record(ClusterRecord, i64),
    Office(Option<(Officer, i64)>),
    Member(Place, Option<Arc<Member>>),
}

pub(super) struct Etcd {
    revision: i64,
    pub(super) record: Option<(ClusterRecord, i64)>,
    pub(super) officer: Option<(Officer, i64)>,
    pub(super) members: [Option<(Arc<Member>, i64)>; 3],
    /// When each ends.
    leases: BTreeMap<i64, Duration>,
    last_lease: i64,
    /// Those of one transaction come together.
    pub(super) events: Vec<(Duration, Vec<Event>)>,
}

impl Etcd {
    pub(super) fn of(primary: NodeName) -> Self {
        Self {
            revision: 1,
            record: Some((ClusterRecord::new(primary, OURS), 1)),
            officer: None,
            members: [const { None }; 3],
            leases: BTreeMap::new(),
            last_lease: 0,
            events: Vec::new(),
        }
    }

    pub(super) fn grant(&mut self, until: Duration) -> i64 {
        self.last_lease += 1;
        self.leases.insert(self.last_lease, until);
        self.last_lease
    }

    pub(super) fn is_alive(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    /// Never ends earlier than was said before.
    pub(super) fn keep(&mut self, lease: i64, until: Duration) -> bool {
        self.leases.get_mut(&lease).map(|end| *end = until.max(*end)).is_some()
    }

    /// Whether the office was among what leases that have ended took along.
    pub(super) fn expire(&mut self, now: Duration) -> bool {
        let held = self.officer.is_some();
        let ended: Vec<i64> = self.leases.iter().filter(|(_, end)| now >= **end).map(|(id, _)| *id).collect();
        for lease in ended {
            self.leases.remove(&lease);
            if self.officer.as_ref().is_some_and(|(_, of)| *of == lease) {
                self.officer = None;
                self.tell(now, Event::Office(None));
            }
            for place in 0..3 {
                if self.members[place].take_if(|(_, of)| *of == lease).is_some() {
                    self.tell(now, Event::Member(place, None));
                }
            }
        }
        held && self.officer.is_none()
    }

    fn tell(&mut self, now: Duration, event: Event) {
        self.events.push((now, vec![event]));
    }

    pub(super) fn put_member(&mut self, now: Duration, place: Place, member: Arc<Member>, lease: i64) -> bool {
        if !self.is_alive(lease) {
            return false;
        }
        self.members[place] = Some((member.clone(), lease));
        self.tell(now, Event::Member(place, Some(member)));
        true
    }

    /// The transactions of `Store::write`.
    pub(super) fn write(
        &mut self,
        now: Duration,
        revision: i64,
        record: &ClusterRecord,
        claim: &Claim,
        lease: i64,
    ) -> bool {
        let holds = self.officer.as_ref().is_some_and(|(_, of)| *of == lease);
        let claimed = match claim {
            Claim::Take(_) => self.officer.is_none() && self.is_alive(lease),
            Claim::Hold | Claim::Leave => holds,
            Claim::Word => true,
            Claim::Quiet => self.officer.is_none() && self.members.iter().all(Option::is_none),
        };
        if self.record.as_ref().is_none_or(|(_, of)| *of != revision) || !claimed {
            return false;
        }
        self.revision += 1;
        self.record = Some((record.clone(), self.revision));
        let mut events = vec![Event::Record(record.clone(), self.revision)];
        match claim {
            Claim::Take(node) => {
                self.officer = Some((Officer { node: node.clone(), term: record.term }, lease));
                events.push(Event::Office(self.officer.clone()));
            }
            Claim::Leave => {
                self.officer = None;
                events.push(Event::Office(None));
            }
            Claim::Hold | Claim::Word | Claim::Quiet => {}
        }
        self.events.push((now, events));
        true
    }

    /// The office of an agent that was started again, on its new lease.
    pub(super) fn take_along(&mut self, now: Duration, node: &NodeName, lease: i64) -> bool {
        match &mut self.officer {
            Some((officer, of)) if officer.node == *node && *of != lease => *of = lease,
            _ => return false,
        }
        self.tell(now, Event::Office(self.officer.clone()));
        true
    }
}
