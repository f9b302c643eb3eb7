//! Who may connect from where, how many at once, and how fast they may guess passwords.
//!
//! Decisions are pure ([`Rules::allows`], [`Throttle`]); counts are shared by all listeners.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::worker::Permit;

/// A range of addresses: `10.0.0.0/8`, `::1/128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// From a text; without a prefix it is one address. `None` if it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(most), |p| p.parse().ok()).filter(|p| *p <= most)?;
        Some(Self { address, prefix })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
            IpAddr::V6(v6) => (v6.to_bits(), false),
        };
        let ((ours, four), (theirs, also_four)) = (bits(self.address), bits(address.to_canonical()));
        let differ = (ours ^ theirs).leading_zeros();
        four == also_four && differ >= u32::from(self.prefix)
    }
}

/// Who may connect; the first rule that fits decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

/// What a rule fits and says. An empty list fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub networks: Vec<Network>,
    pub databases: Vec<String>,
    pub users: Vec<String>,
    pub allow: bool,
}

impl Rules {
    /// Without any rule everyone may try; with rules, who fits none may not.
    #[must_use]
    pub fn allows(&self, address: IpAddr, database: &str, user: &str) -> bool {
        let fits = |rule: &&Rule| {
            (rule.networks.is_empty() || rule.networks.iter().any(|network| network.contains(address)))
                && (rule.databases.is_empty() || rule.databases.iter().any(|d| d == database))
                && (rule.users.is_empty() || rule.users.iter().any(|u| u == user))
        };
        self.0.is_empty() || self.0.iter().find(fits).is_some_and(|rule| rule.allow)
    }
}

/// How many clients may be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLimits {
    pub all: usize,
    /// Of one user; of one database.
    pub user: Option<usize>,
    pub database: Option<usize>,
    /// Instead of `user`, for some of them.
    pub users: BTreeMap<String, usize>,
    /// Instead of `database`, for some of them.
    pub databases: BTreeMap<String, usize>,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { all: 1_000, user: None, database: None, users: BTreeMap::new(), databases: BTreeMap::new() }
    }
}

/// The limit of one of many, and what it is called: its own, or that of all.
fn limit(own: Option<&usize>, of_all: Option<usize>, names: [&'static str; 2]) -> (usize, &'static str) {
    let [of_its_own, usual] = names;
    // counted without a limit as well: there may be one soon
    own.map_or((of_all.unwrap_or(usize::MAX), usual), |own| (*own, of_its_own))
}

/// Clients connected, by user and database.
#[derive(Debug, Default)]
pub(crate) struct Connected {
    all: Arc<AtomicUsize>,
    users: Mutex<HashMap<String, Arc<AtomicUsize>>>,
    databases: Mutex<HashMap<String, Arc<AtomicUsize>>>,
}

impl Connected {
    /// Lets one more in, or says which limit it meets.
    pub(crate) fn admit(&self, user: &str, database: &str, limits: &ClientLimits) -> Result<Permit, &'static str> {
        let mut permit = Permit(Vec::new());
        let mut take = |count: Arc<AtomicUsize>, (max, what): (usize, _)| {
            let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
            taken.map(|_| permit.0.push(count)).map_err(|_| what)
        };
        let of_user = ["max_connections of the user", "max_user_connections"];
        let of_database = ["max_connections of the database", "max_db_connections"];
        take(self.all.clone(), (limits.all, "max_client_conn"))?;
        take(counter(&self.users, user), limit(limits.users.get(user), limits.user, of_user))?;
        take(counter(&self.databases, database), limit(limits.databases.get(database), limits.database, of_database))?;
        Ok(permit)
    }

    pub(crate) fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }
}

/// Names counted before those that nobody uses are forgotten.
const COUNTERS_MAX: usize = 1_000;

fn counter(counters: &Mutex<HashMap<String, Arc<AtomicUsize>>>, name: &str) -> Arc<AtomicUsize> {
    let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
    if counters.len() >= COUNTERS_MAX {
        // those that nobody is counted by
        counters.retain(|_, count| Arc::strong_count(count) > 1);
    }
    counters.entry(name.to_owned()).or_default().clone()
}

/// Slows those who fail to log in: each failure from an address doubles what the next one there has to wait.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    failures: Mutex<HashMap<IpAddr, (u32, Duration)>>,
    total: AtomicU64,
}

/// Failures are forgotten after this.
const FORGET: Duration = Duration::from_secs(60);
const ADDRESSES_MAX: usize = 10_000;
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);

impl Throttle {
    /// Counts a failure; how long the answer is to wait.
    pub(crate) fn failed(&self, address: IpAddr, now: Duration) -> Duration {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= ADDRESSES_MAX {
            failures.retain(|_, (_, at)| now.saturating_sub(*at) < FORGET);
        }
        let entry = failures.entry(address).or_insert((0, now));
        if now.saturating_sub(entry.1) >= FORGET {
            entry.0 = 0;
        }
        *entry = (entry.0 + 1, now);
        DELAY_FIRST.saturating_mul(1 << entry.0.saturating_sub(1).min(10)).min(DELAY_MAX)
    }

    /// Failed logins since the start.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        for (network, address, within) in [
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("0.0.0.0/0", "::1", false),
            ("::1", "::1", true),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            assert_eq!(
                Network::parse(network).unwrap().contains(address.parse().unwrap()),
                within,
                "{network} {address}"
            );
        }
        for bad in ["", "10.0.0.0/33", "x", "10.0.0.0/-1", "::/129"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |users: &[&str], allow| Rule {
            networks: vec![Network::parse("127.0.0.0/8").unwrap()],
            users: users.iter().map(|u| (*u).to_owned()).collect(),
            allow,
            ..Rule::default()
        };
        let rules = Rules(vec![rule(&["postgres"], false), rule(&[], true)]);
        let here = "127.0.0.1".parse().unwrap();
        assert!(!rules.allows(here, "d", "postgres"));
        assert!(rules.allows(here, "d", "app"));
        assert!(!rules.allows("10.0.0.1".parse().unwrap(), "d", "app"));
        assert!(Rules::default().allows(here, "d", "postgres"));
    }

    #[test]
    fn permits_are_given_back() {
        let connected = Connected::default();
        let limits = ClientLimits { all: 3, user: Some(1), database: Some(2), ..ClientLimits::default() };
        let first = connected.admit("u", "d", &limits).unwrap();
        assert_eq!(connected.admit("u", "d", &limits).unwrap_err(), "max_user_connections");
        let second = connected.admit("v", "d", &limits).unwrap();
        assert_eq!(connected.admit("w", "d", &limits).unwrap_err(), "max_db_connections");
        assert_eq!(connected.all(), 2);
        // what is said of one holds instead of what is said of all, more or less
        let limits = ClientLimits {
            users: [("u".to_owned(), 2)].into(),
            databases: [("d".to_owned(), 1), ("e".to_owned(), 1)].into(),
            ..limits
        };
        assert_eq!(connected.admit("u", "d", &limits).unwrap_err(), "max_connections of the database");
        let third = connected.admit("u", "e", &limits).unwrap();
        assert_eq!(connected.admit("u", "f", &limits).unwrap_err(), "max_client_conn");
        drop(second);
        assert_eq!(connected.admit("u", "f", &limits).unwrap_err(), "max_connections of the user");
        drop((first, third));
        assert_eq!(connected.all(), 0);
    }

    #[test]
    fn failures_cost_more_and_more_until_forgotten() {
        let (throttle, here) = (Throttle::default(), "127.0.0.1".parse().unwrap());
        let waits: Vec<u128> = (0..8).map(|_| throttle.failed(here, Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(throttle.failed(here, FORGET).as_millis(), 100);
        assert_eq!(throttle.total(), 9);
    }
}
