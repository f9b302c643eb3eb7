//! The console's tables: columns under PgBouncer's names, made from the workers' views. Pure.
//!
//! The part of a pool that came by the read-only address is shown under its database's name with `:ro` behind it, so
//! that a database and a user name one row, as exporters expect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    VERSION,
    command::{SHOWS, Show},
    stats::{histograms, stats, totals},
};
use crate::{
    backends::Access,
    handle::Handle,
    pool::PoolKey,
    proxy::READ_ONLY_SUFFIX,
    view::{Activity, ClientView, PoolView, WorkerView},
};

/// What a table is made from.
pub(super) struct Book<'a> {
    pub(super) views: Vec<WorkerView>,
    pub(super) handle: &'a Handle,
}

/// Texts in columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<&'static str>,
    pub(super) rows: Vec<Vec<Option<String>>>,
}

impl Table {
    pub(super) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, values: impl IntoIterator<Item = String>) {
        self.rows.push(values.into_iter().map(Some).collect());
    }
}

/// A pool's database as the console names it.
pub(crate) fn database_name(key: &PoolKey) -> String {
    match key.access {
        Access::ReadWrite => key.database.to_string(),
        Access::ReadOnly => format!("{}{READ_ONLY_SUFFIX}", key.database),
    }
}

pub(super) fn show(what: Show, book: &Book<'_>) -> Table {
    let pools = merged(&book.views);
    match what {
        Show::Help => help(),
        Show::Version => {
            let mut table = Table::new(&["version"]);
            table.row([VERSION.to_owned()]);
            table
        }
        Show::Stats => stats(&pools, book.handle, true, true),
        Show::StatsTotals => stats(&pools, book.handle, true, false),
        Show::StatsAverages => stats(&pools, book.handle, false, true),
        Show::Totals => totals(&pools),
        Show::Pools => pools_table(&pools),
        Show::Clients => clients(&book.views),
        Show::Servers => servers(&book.views),
        Show::Databases => databases(&pools, &book.views, &book.handle.disabled()),
        Show::Users => users(&pools),
        Show::Lists => lists(&pools, book),
        Show::Config => config(book.handle),
        Show::State => state(&pools),
        Show::Histograms => histograms(&pools),
    }
}

/// The workers' parts of each pool put together.
pub(crate) fn merged(views: &[WorkerView]) -> Vec<PoolView> {
    let mut pools: BTreeMap<PoolKey, PoolView> = BTreeMap::new();
    for part in views.iter().flat_map(|view| &view.pools) {
        match pools.get_mut(&part.key) {
            None => {
                pools.insert(part.key.clone(), part.clone());
            }
            Some(pool) => {
                pool.clients += part.clients;
                pool.waiting += part.waiting;
                pool.longest_wait = pool.longest_wait.max(part.longest_wait);
                pool.servers += part.servers;
                pool.idle += part.idle;
                pool.opening += part.opening;
                pool.paused |= part.paused;
                pool.counts = pool.counts.plus(&part.counts);
                pool.query_times = pool.query_times.plus(&part.query_times);
                pool.wait_times = pool.wait_times.plus(&part.wait_times);
            }
        }
    }
    pools.into_values().collect()
}

fn help() -> Table {
    let mut table = Table::new(&["command"]);
    for (name, _) in SHOWS {
        table.row([format!("SHOW {}", name.to_uppercase())]);
    }
    for command in [
        "PAUSE [db]",
        "RESUME [db]",
        "RECONNECT [db]",
        "WAIT_CLOSE [db]",
        "KILL [db]",
        "KILL_CLIENT id",
        "DISABLE db",
        "ENABLE db",
        "RELOAD",
        "SET ...",
    ] {
        table.row([command.to_owned()]);
    }
    table
}

fn pools_table(pools: &[PoolView]) -> Table {
    let mut table = Table::new(&[
        "database",
        "user",
        "cl_active",
        "cl_waiting",
        "cl_active_cancel_req",
        "cl_waiting_cancel_req",
        "sv_active",
        "sv_active_cancel",
        "sv_being_canceled",
        "sv_idle",
        "sv_used",
        "sv_tested",
        "sv_login",
        "maxwait",
        "maxwait_us",
        "pool_mode",
    ]);
    for pool in pools {
        let zero = || "0".to_owned();
        table.row([
            database_name(&pool.key),
            pool.key.user.to_string(),
            pool.clients.saturating_sub(pool.waiting).to_string(),
            pool.waiting.to_string(),
            zero(),
            zero(),
            pool.servers.saturating_sub(pool.idle).to_string(),
            zero(),
            zero(),
            pool.idle.to_string(),
            zero(),
            zero(),
            pool.opening.to_string(),
            pool.longest_wait.as_secs().to_string(),
            pool.longest_wait.subsec_micros().to_string(),
            pool.limits.mode.name().to_owned(),
        ]);
    }
    table
}

fn named(key: Option<&PoolKey>) -> (String, String) {
    key.map_or_else(Default::default, |key| (key.user.to_string(), database_name(key)))
}

fn clients(views: &[WorkerView]) -> Table {
    let mut table = Table::new(&[
        "type",
        "user",
        "database",
        "state",
        "addr",
        "port",
        "wait",
        "wait_us",
        "ptr",
        "link",
        "remote_pid",
        "application_name",
        "prepared_statements",
        "id",
    ]);
    let links: BTreeMap<i32, i32> = views
        .iter()
        .flat_map(|view| &view.servers)
        .filter_map(|server| server.client.map(|client| (client, server.pid)))
        .collect();
    for client in views.iter().flat_map(|view| &view.clients) {
        let ClientView { pid, peer, state, in_state, application_name, statements, .. } = client;
        let (user, database) = named(client.pool.as_ref());
        let (label, wait) = match state {
            Activity::Waiting => ("waiting", *in_state),
            Activity::Idle | Activity::Active => ("active", Duration::ZERO),
        };
        table.row([
            "C".to_owned(),
            user,
            database,
            label.to_owned(),
            peer.ip().to_string(),
            peer.port().to_string(),
            wait.as_secs().to_string(),
            wait.subsec_micros().to_string(),
            pid.to_string(),
            links.get(pid).map(ToString::to_string).unwrap_or_default(),
            pid.to_string(),
            application_name.clone(),
            statements.to_string(),
            pid.to_string(),
        ]);
    }
    table
}

fn servers(views: &[WorkerView]) -> Table {
    let mut table = Table::new(&[
        "type",
        "user",
        "database",
        "state",
        "addr",
        "port",
        "age",
        "ptr",
        "link",
        "remote_pid",
        "node",
        "pinned",
    ]);
    for server in views.iter().flat_map(|view| &view.servers) {
        let (user, database) = named(server.pool.as_ref());
        table.row([
            "S".to_owned(),
            user,
            database,
            if server.client.is_some() { "active" } else { "idle" }.to_owned(),
            server.node.address.ip().to_string(),
            server.node.address.port().to_string(),
            server.age.as_secs().to_string(),
            server.pid.to_string(),
            server.client.map(|client| client.to_string()).unwrap_or_default(),
            server.pid.to_string(),
            server.node.name.clone(),
            if server.pinned { "1" } else { "0" }.to_owned(),
        ]);
    }
    table
}

fn databases(pools: &[PoolView], views: &[WorkerView], disabled: &BTreeSet<Arc<str>>) -> Table {
    let mut table = Table::new(&[
        "name",
        "host",
        "port",
        "database",
        "force_user",
        "pool_size",
        "min_pool_size",
        "reserve_pool",
        "pool_mode",
        "max_connections",
        "current_connections",
        "paused",
        "disabled",
    ]);
    let mut seen = BTreeSet::new();
    for pool in pools.iter().filter(|pool| seen.insert(database_name(&pool.key))) {
        let of_name = |key: &PoolKey| key.database == pool.key.database && key.access == pool.key.access;
        let current: usize = pools.iter().filter(|p| of_name(&p.key)).map(|p| p.servers).sum();
        let node = views.iter().flat_map(|view| &view.servers).find(|s| s.pool.as_ref().is_some_and(of_name));
        let node = node.map(|server| server.node.address);
        table.rows.push(vec![
            Some(database_name(&pool.key)),
            node.map(|address| address.ip().to_string()),
            node.map(|address| address.port().to_string()),
            Some(pool.key.database.to_string()),
            None,
            Some(pool.limits.size.to_string()),
            Some(pool.limits.idle_min.to_string()),
            Some(pool.limits.reserve.to_string()),
            Some(pool.limits.mode.name().to_owned()),
            // no limit of its own
            Some("0".to_owned()),
            Some(current.to_string()),
            Some(if pool.paused { "1" } else { "0" }.to_owned()),
            Some(if disabled.contains(&pool.key.database) { "1" } else { "0" }.to_owned()),
        ]);
    }
    // those that nobody has connected to
    for name in disabled.iter().filter(|name| !seen.contains(&***name)) {
        let mut row = vec![None; table.columns.len()];
        for (column, value) in table.columns.iter().zip(&mut row) {
            match *column {
                "name" | "database" => *value = Some(name.to_string()),
                "disabled" => *value = Some("1".to_owned()),
                _ => {}
            }
        }
        table.rows.push(row);
    }
    table
}

fn users(pools: &[PoolView]) -> Table {
    let mut table = Table::new(&["name", "pool_mode"]);
    let names: BTreeSet<&str> = pools.iter().map(|pool| &*pool.key.user).collect();
    table.rows.extend(names.into_iter().map(|name| vec![Some(name.to_owned()), None]));
    table
}

fn lists(pools: &[PoolView], book: &Book<'_>) -> Table {
    let mut table = Table::new(&["list", "items"]);
    let count = |f: fn(&PoolView) -> usize| pools.iter().map(f).sum::<usize>();
    let databases: BTreeSet<String> = pools.iter().map(|pool| database_name(&pool.key)).collect();
    let users: BTreeSet<&str> = pools.iter().map(|pool| &*pool.key.user).collect();
    let clients = count(|pool| pool.clients);
    let logging_in = book.handle.logins().0.saturating_sub(clients);
    for (name, items) in [
        ("databases", databases.len()),
        ("users", users.len()),
        ("pools", pools.len()),
        ("free_clients", 0),
        ("used_clients", clients),
        ("login_clients", logging_in),
        ("free_servers", 0),
        ("used_servers", count(|pool| pool.servers)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ] {
        table.row([name.to_owned(), items.to_string()]);
    }
    table
}

fn config(handle: &Handle) -> Table {
    let mut table = Table::new(&["key", "value", "default", "changeable"]);
    let (now, default) = (handle.options(), crate::Options::default());
    let seconds = |time: Duration| time.as_secs().to_string();
    for (key, value, default) in [
        ("pool_mode", now.pool.mode.name().to_owned(), default.pool.mode.name().to_owned()),
        ("default_pool_size", now.pool.size.to_string(), default.pool.size.to_string()),
        ("min_pool_size", now.pool.idle_min.to_string(), default.pool.idle_min.to_string()),
        ("reserve_pool_size", now.pool.reserve.to_string(), default.pool.reserve.to_string()),
        ("reserve_pool_timeout", seconds(now.pool.reserve_after), seconds(default.pool.reserve_after)),
        ("server_lifetime", seconds(now.pool.lifetime), seconds(default.pool.lifetime)),
        ("server_idle_timeout", seconds(now.pool.idle), seconds(default.pool.idle)),
        ("query_wait_timeout", seconds(now.pool.wait), seconds(default.pool.wait)),
        ("max_prepared_statements", now.pool.statements.to_string(), default.pool.statements.to_string()),
        ("max_client_conn", now.clients.all.to_string(), default.clients.all.to_string()),
        ("client_login_timeout", seconds(now.login), seconds(default.login)),
        ("server_connect_timeout", seconds(now.connect), seconds(default.connect)),
    ] {
        table.row([key.to_owned(), value, default, "yes".to_owned()]);
    }
    table
}

fn state(pools: &[PoolView]) -> Table {
    let mut table = Table::new(&["key", "value"]);
    let paused = !pools.is_empty() && pools.iter().all(|pool| pool.paused);
    for (key, value) in [("active", !paused), ("paused", paused), ("suspended", false)] {
        table.row([key.to_owned(), if value { "yes" } else { "no" }.to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        histogram::Histogram,
        pool::{Counts, PoolLimits},
    };

    fn pool(database: &str, access: Access, clients: usize, transactions: u64) -> PoolView {
        PoolView {
            key: PoolKey { database: database.into(), user: Arc::from("app"), access },
            limits: PoolLimits::default(),
            clients,
            waiting: 1,
            longest_wait: Duration::from_micros(1_500_002),
            servers: 2,
            idle: 1,
            opening: 0,
            paused: false,
            counts: Counts { transactions, ..Counts::default() },
            query_times: Histogram::default(),
            wait_times: Histogram::default(),
        }
    }

    #[test]
    fn workers_parts_are_one_pool() {
        let worker = |clients, transactions| WorkerView {
            pools: vec![pool("loans", Access::ReadWrite, clients, transactions)],
            ..WorkerView::default()
        };
        let pools = merged(&[worker(3, 10), worker(4, 20)]);
        assert_eq!((pools.len(), pools[0].clients, pools[0].servers, pools[0].counts.transactions), (1, 7, 4, 30));
        let table = pools_table(&pools);
        let value = |name| {
            let at = table.columns.iter().position(|column| *column == name).unwrap();
            table.rows[0][at].clone().unwrap()
        };
        assert_eq!(
            (value("database"), value("cl_active"), value("cl_waiting")),
            ("loans".into(), "5".into(), "2".into())
        );
        assert_eq!((value("sv_active"), value("sv_idle")), ("2".into(), "2".into()));
        assert_eq!((value("maxwait"), value("maxwait_us")), ("1".into(), "500002".into()));
    }
}
