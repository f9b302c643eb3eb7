//! The store in etcd (API v3): one connection at a time, to one member after the other, over which a lease is kept alive,
//! changes are watched and this supervisor's own word is put.
//!
//! Source: etcd 3.4 manual, "etcd API" (transactions, leases, watches).

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, KeyValue,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use millrace_base::{Backoff, Clock};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{Claim, EtcdSpec, Heard, Member, Officer, Shared, Validity};
use crate::{error::ClusterError, history::Entry, spec::NodeName, state::ClusterRecord};

/// A connection to one member of etcd.
const CONNECT: Duration = Duration::from_millis(500);
/// A question to it.
const ANSWER: Duration = Duration::from_secs(1);
/// A supervisor's loop that has not turned for this long hangs: longer than everything that it waits for.
const STILL_MAX: Duration = Duration::from_secs(10);
/// Of the cluster's history, events kept at hand.
const HISTORY: usize = 500;

/// A member of etcd that answers.
#[derive(Clone)]
struct Reached(Client);

impl std::fmt::Debug for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reached")
    }
}

/// What a supervisor asks of the store.
#[derive(Debug)]
pub(crate) struct Store {
    spec: EtcdSpec,
    node: Option<NodeName>,
    shared: watch::Receiver<Shared>,
    /// 0: none.
    lease: watch::Receiver<i64>,
    validity: Arc<watch::Sender<Validity>>,
    client: watch::Receiver<Option<Reached>>,
    /// With the time at which it was said.
    member: watch::Sender<Option<(Arc<[u8]>, Duration)>>,
    /// When the supervisor's loop turned last, in milliseconds of its clock.
    turned: Arc<AtomicU64>,
}

/// The other end: keeps the connection.
#[derive(Debug)]
pub(crate) struct Keeper {
    spec: EtcdSpec,
    node: Option<NodeName>,
    clock: Arc<dyn Clock>,
    shared: watch::Sender<Shared>,
    lease: watch::Sender<i64>,
    validity: Arc<watch::Sender<Validity>>,
    client: watch::Sender<Option<Reached>>,
    member: watch::Receiver<Option<(Arc<[u8]>, Duration)>>,
    turned: Arc<AtomicU64>,
    /// Until when the lease is good, whatever it is used for.
    good: watch::Sender<Duration>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The store of a supervisor, of `node` if it has one, and what keeps it.
pub(crate) fn open(spec: EtcdSpec, node: Option<NodeName>, clock: Arc<dyn Clock>) -> (Store, Keeper) {
    // a server that an earlier supervisor left is given the time to be heard of
    let start = Validity { until: clock.monotonic() + spec.valid_for(), lapses: 0 };
    let validity = Arc::new(watch::channel(start).0);
    let (shared, lease) = (watch::channel(Shared::default()), watch::channel(0));
    let (client, member) = (watch::channel(None), watch::channel(None));
    let turned = Arc::new(AtomicU64::new(millis(clock.monotonic())));
    let good = watch::channel(Duration::ZERO).0;
    let store = Store {
        spec: spec.clone(),
        node: node.clone(),
        shared: shared.1,
        lease: lease.1,
        validity: validity.clone(),
        client: client.1,
        member: member.0,
        turned: turned.clone(),
    };
    let (shared, lease, client, member) = (shared.0, lease.0, client.0, member.1);
    (store, Keeper { spec, node, clock, shared, lease, validity, client, member, turned, good })
}

fn failed(doing: &'static str) -> impl Fn(etcd_client::Error) -> ClusterError {
    move |source| ClusterError::Store { doing, reason: source.to_string() }
}

async fn within<T>(
    limit: Duration,
    doing: &'static str,
    asking: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, ClusterError> {
    match timeout(limit, asking).await {
        Ok(answer) => answer.map_err(failed(doing)),
        Err(_) => Err(ClusterError::Store { doing, reason: format!("no answer within {} ms", limit.as_millis()) }),
    }
}

impl Store {
    /// As heard last.
    pub(crate) fn shared(&self) -> Shared {
        self.shared.borrow().clone()
    }

    /// This supervisor's; 0: none.
    pub(crate) fn lease(&self) -> i64 {
        *self.lease.borrow()
    }

    pub(crate) fn validity(&self) -> Arc<watch::Sender<Validity>> {
        self.validity.clone()
    }

    /// The supervisor's loop turns: what it keeps alive is kept alive.
    pub(crate) fn turn(&self, now: Duration) {
        self.turned.store(millis(now), Ordering::Relaxed);
    }

    /// Waits until something else has been heard.
    pub(crate) async fn changed(&mut self) {
        // a keeper that is gone tells nothing any more: whoever waits does so for other things too
        if self.shared.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Says what this supervisor saw of its node; sent as soon as can be, the latest alone.
    pub(crate) fn say(&self, member: &Member) -> Result<(), ClusterError> {
        self.member.send_replace(Some((json("what is seen of the node", member)?.into(), member.now)));
        Ok(())
    }

    /// Writes the record if it is still that of `revision` (0: none) and `claim` is true. Says whether it was.
    ///
    /// # Errors
    /// If etcd does not answer: then it may have been written all the same.
    pub(crate) async fn write(
        &self,
        revision: i64,
        record: &ClusterRecord,
        claim: Claim,
        happened: Option<&Entry>,
    ) -> Result<bool, ClusterError> {
        let client = self.client.borrow().clone();
        let Some(Reached(mut client)) = client else {
            return Err(ClusterError::NotReached);
        };
        let (key, office, lease) = (self.spec.key("record"), self.spec.key("office"), self.lease());
        if lease == 0 {
            return Err(ClusterError::NotReached);
        }
        let mut when = vec![Compare::mod_revision(key.clone(), CompareOp::Equal, revision)];
        let mut then = vec![TxnOp::put(key, json("the record", record)?, None)];
        match claim {
            Claim::Take(node) => {
                let officer = json("the office", &Officer { node, term: record.term })?;
                when.push(Compare::create_revision(office.clone(), CompareOp::Equal, 0));
                then.push(TxnOp::put(office, officer, Some(PutOptions::new().with_lease(lease))));
            }
            Claim::Hold => when.push(Compare::lease(office, CompareOp::Equal, lease)),
            Claim::Leave => {
                when.push(Compare::lease(office.clone(), CompareOp::Equal, lease));
                then.push(TxnOp::delete(office, None));
            }
            Claim::Word => {}
            Claim::Quiet => {
                when.push(Compare::create_revision(office, CompareOp::Equal, 0));
                // of every key that there is
                let members = self.spec.key("members/");
                when.push(Compare::create_revision(members, CompareOp::Equal, 0).with_prefix());
            }
        }
        if let Some(entry) = happened {
            then.push(TxnOp::put(self.history_key(entry), json("the history", entry)?, None));
        }
        let answer = within(ANSWER, "write the record", client.txn(Txn::new().when(when).and_then(then))).await?;
        Ok(answer.succeeded())
    }

    /// Nothing is to be heard of this supervisor's node any more: it ends.
    pub(crate) async fn forget(&self) -> Result<(), ClusterError> {
        self.member.send_replace(None);
        let client = self.client.borrow().clone();
        let Some(Reached(mut client)) = client else { return Err(ClusterError::NotReached) };
        let Some(node) = &self.node else { return Ok(()) };
        let key = self.spec.key(&format!("members/{node}"));
        within(ANSWER, "delete", client.delete(key, None)).await.map(drop)
    }

    /// Orders by term, then by time.
    fn history_key(&self, entry: &Entry) -> String {
        let by = self.node.as_ref().map_or("", NodeName::as_str);
        self.spec.key(&format!("history/{:012}-{:020}-{by}", entry.term, entry.at.0))
    }
}

fn json(what: &'static str, value: &impl serde::Serialize) -> Result<Vec<u8>, ClusterError> {
    serde_json::to_vec(value).map_err(|error| ClusterError::Store { doing: what, reason: error.to_string() })
}

impl Keeper {
    /// Keeps the store until it is dropped.
    pub(crate) async fn keep(self) -> Result<(), ClusterError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut said = false;
        loop {
            for endpoint in &self.spec.endpoints {
                let ended = Box::pin(self.session(endpoint)).await;
                let was = self.shared.borrow().connected;
                self.shared.send_modify(|shared| shared.connected = false);
                self.client.send_replace(None);
                if was {
                    backoff.reset();
                    said = false;
                }
                if let (Err(error), false) = (ended, said) {
                    said = true;
                    tracing::warn!(endpoint, %error, "etcd");
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn session(&self, endpoint: &str) -> Result<(), ClusterError> {
        self.check_turning()?;
        let mut client = within(CONNECT, "reach etcd", Client::connect([endpoint], Some(self.options()?))).await?;
        let (mut keeper, mut answers) = self.take_lease(&mut client).await?;
        let revision = self.read_all(&mut client).await?;
        self.take_office_along(&mut client).await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let mut changes = within(ANSWER, "watch", client.watch(self.spec.key(""), Some(options))).await?;
        self.client.send_replace(Some(Reached(client.clone())));
        self.shared.send_modify(|shared| shared.connected = true);
        tracing::info!(endpoint, "etcd is reached");

        tokio::try_join!(self.stay(&mut keeper, &mut answers), self.hear(&mut changes), self.say(client)).map(drop)
    }

    /// Keeps the lease alive.
    async fn stay(
        &self,
        keeper: &mut LeaseKeeper,
        answers: &mut LeaseKeepAliveStream,
    ) -> Result<Infallible, ClusterError> {
        let beat = self.spec.beat();
        let mut next = Instant::now() + beat;
        loop {
            tokio::time::sleep_until(next).await;
            next = Instant::now() + beat;
            self.check_turning()?;
            let asked = self.clock.monotonic();
            within(beat * 2, "keep the lease", keeper.keep_alive()).await?;
            let answer = within(beat * 2, "keep the lease", answers.message()).await?;
            if answer.is_none_or(|answer| answer.ttl() <= 0) {
                self.lease.send_replace(0);
                return Err(ClusterError::Store { doing: "keep the lease", reason: "it has ended".to_owned() });
            }
            self.note(asked);
            if self.holds_office() {
                let (until, now) = (*self.good.borrow(), self.clock.monotonic());
                self.validity.send_modify(|validity| validity.extend(until, now));
            }
        }
    }

    /// The lease is good, counted from when it was asked for.
    fn note(&self, asked: Duration) {
        self.good.send_replace(asked + self.spec.valid_for());
    }

    /// By what has been read or heard over this connection.
    fn holds_office(&self) -> bool {
        let lease = *self.lease.borrow();
        self.shared
            .borrow()
            .officer
            .as_ref()
            .is_some_and(|(officer, of)| self.node.as_ref() == Some(&officer.node) && *of == lease)
    }

    /// A supervisor that hangs is as good as dead: its lease is not kept.
    fn check_turning(&self) -> Result<(), ClusterError> {
        let still = millis(self.clock.monotonic()).saturating_sub(self.turned.load(Ordering::Relaxed));
        match still > millis(STILL_MAX.max(self.spec.ttl * 2)) {
            false => Ok(()),
            true => Err(ClusterError::Store {
                doing: "keep the lease",
                reason: format!("the supervisor hangs since {still} ms"),
            }),
        }
    }

    /// Takes each change as it comes.
    async fn hear(&self, changes: &mut WatchStream) -> Result<Infallible, ClusterError> {
        let ended = |reason: &str| Err(ClusterError::Store { doing: "watch", reason: reason.to_owned() });
        loop {
            let Some(heard) = changes.message().await.map_err(failed("watch"))? else { return ended("it ended") };
            if heard.canceled() {
                return ended(heard.cancel_reason());
            }
            let now = self.clock.monotonic();
            self.shared.send_if_modified(|shared| {
                let mut news = false;
                for event in heard.events() {
                    if let Some(pair) = event.kv() {
                        news |= self.take(shared, pair, event.event_type() == EventType::Put, now);
                    }
                }
                news
            });
        }
    }

    /// Puts this supervisor's word, the latest alone.
    async fn say(&self, mut client: Client) -> Result<Infallible, ClusterError> {
        let Some(node) = &self.node else { return std::future::pending().await };
        let mut member = self.member.clone();
        let key = self.spec.key(&format!("members/{node}"));
        member.mark_changed();
        loop {
            if member.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let word = member.borrow_and_update().clone();
            // one from before a freeze or an outage is no news any more
            let fresh = word.filter(|(_, said)| self.clock.monotonic().saturating_sub(*said) < self.spec.ttl);
            if let Some((word, _)) = fresh {
                let options = PutOptions::new().with_lease(*self.lease.borrow());
                within(ANSWER, "put", client.put(key.clone(), &*word, Some(options))).await?;
            }
        }
    }

    fn options(&self) -> Result<ConnectOptions, ClusterError> {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|source| ClusterError::Io { doing: "read", path: path.to_owned(), source })
        };
        let mut options = ConnectOptions::new().with_connect_timeout(CONNECT).with_require_leader(true);
        if let Some((name, password)) = &self.spec.user {
            options = options.with_user(name.clone(), password.reveal()).with_auto_token_refresh(true);
        }
        if let Some(ca) = &self.spec.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let Some((certificate, key)) = &self.spec.identity {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }

    /// The lease that there is, if it still lives, or another one.
    async fn take_lease(&self, client: &mut Client) -> Result<(LeaseKeeper, LeaseKeepAliveStream), ClusterError> {
        let id = *self.lease.borrow();
        if id != 0 {
            let asked = self.clock.monotonic();
            match within(ANSWER, "keep the lease", client.lease_keep_alive(id)).await {
                Ok(kept) => {
                    self.note(asked);
                    return Ok(kept);
                }
                Err(ClusterError::Store { reason, .. }) if reason.contains("lease not found") => {
                    self.lease.send_replace(0);
                }
                Err(error) => return Err(error),
            }
        }
        let asked = self.clock.monotonic();
        let seconds = i64::try_from(self.spec.ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let granted = within(ANSWER, "take a lease", client.lease_grant(seconds, None)).await?;
        self.lease.send_replace(granted.id());
        self.note(asked);
        within(ANSWER, "keep the lease", client.lease_keep_alive(granted.id())).await
    }

    /// Everything as it is now; the revision of it.
    async fn read_all(&self, client: &mut Client) -> Result<i64, ClusterError> {
        let options = GetOptions::new().with_prefix();
        let all = within(ANSWER, "read", client.get(self.spec.key(""), Some(options))).await?;
        let now = self.clock.monotonic();
        self.shared.send_modify(|shared| {
            let connected = shared.connected;
            *shared = Shared { connected, ..Shared::default() };
            for pair in all.kvs() {
                self.take(shared, pair, true, now);
            }
        });
        all.header()
            .map(etcd_client::ResponseHeader::revision)
            .ok_or_else(|| ClusterError::Store { doing: "read", reason: "the answer has no revision".to_owned() })
    }

    /// A supervisor that was started again before the lease of the one before it ended goes on in its place: there is
    /// one at a time for a node.
    async fn take_office_along(&self, client: &mut Client) -> Result<(), ClusterError> {
        let (held, lease) = (self.shared.borrow().officer.clone(), *self.lease.borrow());
        let Some((officer, before)) =
            held.filter(|(officer, of)| self.node.as_ref() == Some(&officer.node) && *of != lease)
        else {
            return Ok(());
        };
        let key = self.spec.key("office");
        let when = [Compare::lease(key.clone(), CompareOp::Equal, before)];
        let then = [TxnOp::put(key, json("the office", &officer)?, Some(PutOptions::new().with_lease(lease)))];
        let taken = within(ANSWER, "take the office along", client.txn(Txn::new().when(when).and_then(then))).await?;
        if taken.succeeded() {
            self.shared.send_modify(|shared| shared.officer = Some((officer, lease)));
            self.begin_term();
        }
        Ok(())
    }

    /// This supervisor's node has the office, on a lease that is good for so long.
    fn begin_term(&self) {
        let good = *self.good.borrow();
        self.validity.send_modify(|validity| validity.begin(good));
    }

    /// One key as it is now; `put`: it is there. Says whether it is news to anybody.
    fn take(&self, shared: &mut Shared, pair: &KeyValue, put: bool, now: Duration) -> bool {
        let key = String::from_utf8_lossy(pair.key()).into_owned();
        let Some(name) = key.strip_prefix(&self.spec.key("")) else { return false };
        match name.split_once('/') {
            None if name == "record" => {
                shared.record = put.then(|| read(&key, pair)).flatten().map(|record| (record, pair.mod_revision()));
                shared.unreadable = put && shared.record.is_none();
            }
            None if name == "office" => {
                shared.officer = put.then(|| read(&key, pair)).flatten().map(|officer| (officer, pair.lease()));
                let own = |officer: &Officer| {
                    self.node.as_ref() == Some(&officer.node) && pair.lease() == *self.lease.borrow()
                };
                if shared.officer.as_ref().is_some_and(|(officer, _)| own(officer)) {
                    self.begin_term();
                }
            }
            Some(("members", node)) => {
                let node = NodeName::new(node);
                let heard: Option<Member> = put.then(|| read(&key, pair)).flatten();
                let Some(member) = heard else { return shared.members.remove(&node).is_some() };
                let own = self.node.as_ref() == Some(&node);
                let heard = Heard { member: Arc::new(member), at: now };
                let before = shared.members.insert(node, heard.clone());
                return !own && before.is_none_or(|before| heard.member.is_news(&before.member));
            }
            Some(("history", _)) if put => {
                shared.history.extend(read(&key, pair).map(|entry| (key, entry)));
                while shared.history.len() > HISTORY {
                    shared.history.pop_first();
                }
            }
            _ => return false,
        }
        true
    }
}

/// What another version wrote is told, and treated as if it were not there.
fn read<T: serde::de::DeserializeOwned>(key: &str, pair: &KeyValue) -> Option<T> {
    match serde_json::from_slice(pair.value()) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(key, %error, "what etcd has is not understood");
            None
        }
    }
}
