//! What changes when the proxy is told to be another way while it runs. The comparison is pure.
//!
//! Invariant: values of secrets are never in what is said. Settings have the names and units of `millrace.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    time::Duration,
};

use crate::{
    options::{ClientTls, Options},
    pool::PoolLimits,
};

/// What a reload has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// In force now: `pool_size: 25 → 40`.
    pub changed: Vec<String>,
    /// Different in the files, and in force from the next start.
    pub waits: Vec<String>,
}

/// What the files say now.
#[derive(Debug)]
pub struct Read {
    pub options: Options,
    /// Differences that are none of the proxy's, or that it cannot make while it runs.
    pub waits: Vec<String>,
}

/// Reads the files anew; the error is for people, and means that nothing has changed.
pub type Reading = Pin<Box<dyn Future<Output = Result<Read, String>> + Send>>;

/// How the files are read.
pub(crate) struct Reread(pub(crate) Box<dyn Fn() -> Reading + Send + Sync>);

impl std::fmt::Debug for Reread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reread")
    }
}

/// How `new` differs from `now`.
pub(crate) fn compare(now: &Options, new: &Options) -> Reloaded {
    let mut changed = pool("", &now.pool, &new.pool);
    let databases: BTreeSet<&String> = now.databases.keys().chain(new.databases.keys()).collect();
    for database in databases {
        let of = |options: &Options| options.databases.get(database).copied().unwrap_or(options.pool);
        changed.extend(pool(&format!("{database}."), &of(now), &of(new)));
    }
    changed.extend(own_limits("", &now.clients.databases, &new.clients.databases));
    changed.extend(own_limits("user ", &now.clients.users, &new.clients.users));
    let pairs = plain(now).into_iter().zip(plain(new));
    changed.extend(pairs.filter(|((_, a), (_, b))| a != b).map(|((name, a), (_, b))| format!("{name}: {a} → {b}")));
    for (name, differs) in [
        ("allow", now.rules != new.rules),
        ("certificate", now.certificate != new.certificate),
        ("administrators", now.admins != new.admins),
    ] {
        if differs {
            changed.push(format!("{name}: changed"));
        }
    }
    changed.extend(users(now, new));
    let mut waits = Vec::new();
    if now.workers != new.workers {
        waits.push(format!("workers: {} → {}", now.workers, new.workers));
    }
    let routes = |options: &Options| options.routing.is_some();
    if routes(now) != routes(new) {
        waits.push(format!("route_reads: {} → {}", routes(now), routes(new)));
    }
    Reloaded { changed, waits }
}

fn pool(of: &str, now: &PoolLimits, new: &PoolLimits) -> Vec<String> {
    let settings = |limits: &PoolLimits| {
        [
            ("pool_mode", limits.mode.name().to_owned()),
            ("pool_size", limits.size.to_string()),
            ("reserve_pool_size", limits.reserve.to_string()),
            ("reserve_pool_timeout_ms", limits.reserve_after.as_millis().to_string()),
            ("min_pool_size", limits.idle_min.to_string()),
            ("server_lifetime_s", seconds(limits.lifetime)),
            ("server_idle_timeout_s", seconds(limits.idle)),
            ("query_wait_timeout_s", seconds(limits.wait)),
            ("max_prepared_statements", limits.statements.to_string()),
        ]
    };
    let pairs = settings(now).into_iter().zip(settings(new)).filter(|((_, a), (_, b))| a != b);
    let scope = |name| match name {
        "pool_mode" => " (for new clients)",
        "max_prepared_statements" => " (on new server connections)",
        _ => "",
    };
    pairs.map(|((name, a), (_, b))| format!("{of}{name}: {a} → {b}{}", scope(name))).collect()
}

/// Limits on clients of some databases, or users, alone.
fn own_limits(of: &str, now: &BTreeMap<String, usize>, new: &BTreeMap<String, usize>) -> Vec<String> {
    let names: BTreeSet<&String> = now.keys().chain(new.keys()).collect();
    let limit = |limits: &BTreeMap<String, usize>, name| optional(limits.get(name).copied());
    let each = names.into_iter().map(|name| (name, limit(now, name), limit(new, name))).filter(|(_, a, b)| a != b);
    each.map(|(name, a, b)| format!("{of}{name}.max_connections: {a} → {b}")).collect()
}

fn optional(limit: Option<usize>) -> String {
    limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string())
}

fn seconds(time: Duration) -> String {
    time.as_secs_f64().to_string()
}

fn plain(options: &Options) -> [(&'static str, String); 6] {
    [
        ("max_client_conn", options.clients.all.to_string()),
        ("max_user_connections", optional(options.clients.user)),
        ("max_db_connections", optional(options.clients.database)),
        ("require_tls", matches!(options.client_tls, ClientTls::Require(_)).to_string()),
        ("client_login_timeout_s", seconds(options.login)),
        ("server_connect_timeout_s", seconds(options.connect)),
    ]
}

fn users(now: &Options, new: &Options) -> Vec<String> {
    let names: BTreeSet<&String> = now.secrets.keys().chain(new.secrets.keys()).collect();
    let said = |name: &String| match (now.secrets.get(name), new.secrets.get(name)) {
        (None, Some(_)) => Some(format!("user {name}: added")),
        (Some(_), None) => Some(format!("user {name}: removed")),
        (Some(a), Some(b)) if a != b => Some(format!("password of {name}: changed")),
        _ => None,
    };
    let mut said: Vec<String> = names.into_iter().filter_map(said).collect();
    let query = |options: &Options| {
        options.auth_query.as_ref().map(|query| (query.user.clone(), query.password.clone(), query.database.clone()))
    };
    match (query(now), query(new)) {
        (None, Some(_)) => said.push("auth_query: false → true".to_owned()),
        (Some(_), None) => said.push("auth_query: true → false".to_owned()),
        (now, new) if now != new => said.push("where verifiers are asked for: changed".to_owned()),
        _ => {}
    }
    said
}

#[cfg(test)]
mod tests {
    use millrace_base::Secret;

    use super::*;
    use crate::{access::Rule, link::PoolMode};

    #[test]
    fn every_difference_is_said_and_no_secret_is() {
        let now = Options {
            secrets: [("a".to_owned(), Secret::new("one")), ("b".to_owned(), Secret::new("one"))].into(),
            ..Options::default()
        };
        assert_eq!(compare(&now, &now.clone()), Reloaded::default());
        let mut new = now.clone();
        (new.pool.size, new.pool.mode, new.pool.wait) = (40, PoolMode::Session, Duration::from_secs(9));
        new.databases = [("loans".to_owned(), PoolLimits { size: 7, ..new.pool })].into();
        new.clients.user = Some(3);
        new.clients.users = [("a".to_owned(), 4)].into();
        new.clients.databases = [("loans".to_owned(), 5)].into();
        new.rules.0.push(Rule::default());
        new.secrets = [("a".to_owned(), Secret::new("two")), ("c".to_owned(), Secret::new("one"))].into();
        new.workers = 2;
        let reloaded = compare(&now, &new);
        assert_eq!(
            reloaded.changed,
            [
                "pool_mode: transaction → session (for new clients)",
                "pool_size: 25 → 40",
                "query_wait_timeout_s: 120 → 9",
                "loans.pool_mode: transaction → session (for new clients)",
                "loans.pool_size: 25 → 7",
                "loans.query_wait_timeout_s: 120 → 9",
                "loans.max_connections: none → 5",
                "user a.max_connections: none → 4",
                "max_user_connections: none → 3",
                "allow: changed",
                "password of a: changed",
                "user b: removed",
                "user c: added",
            ]
        );
        assert_eq!(reloaded.waits, ["workers: 1 → 2"]);
    }
}
