//! What a worker does now and then: deadlines, the topology, an operator's commands, the end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    backends::{Backends, Fit},
    message::Severity,
    options::Options,
    peer::Server,
    pool::Pool,
    view::{ClientView, PoolView, ServerView, WorkerView},
    worker::{Command, KILLED, Worker},
};

impl Worker {
    /// Looks at deadlines.
    pub(crate) fn tick(&mut self) {
        for at in 0..self.pools.len() {
            let Some(pool) = self.pools.get_mut(at) else { continue };
            pool.note_shrunk();
            let (seconds, paused) = (pool.limits.wait.as_secs(), pool.paused);
            for client in pool.overdue(self.now) {
                let (text, hint) = if paused {
                    (format!("the database is paused, for more than {seconds} s"), "its operator resumes it")
                } else {
                    (
                        format!("no server connection was free within {seconds} s"),
                        "more clients work at once than the pool has connections: shorten transactions, or raise pool_size",
                    )
                };
                self.refuse_waiting(client, "53300", &text, hint);
            }
            self.close_spent(at);
            self.open_more(at);
            self.note_starving(at);
        }
    }

    fn close_spent(&mut self, at: usize) {
        let Some(pool) = self.pools.get(at) else { return };
        for server_at in pool.idle.clone() {
            let (Some(pool), Some(server)) = (self.pools.get(at), self.servers.get(server_at)) else { return };
            let since = |moment: Duration| self.now.saturating_sub(moment);
            let elsewhere = pool.is_wanted_elsewhere();
            if elsewhere || pool.is_spent(since(server.opened), since(server.since), server.generation) {
                self.drop_server(server_at);
            }
        }
    }

    /// The cluster has changed: connections that must not be used any more end now, others when they are done.
    pub(crate) fn follow(&mut self, backends: Arc<Backends>) {
        self.backends = backends;
        self.note_replicas();
        let servers: Vec<usize> = self.servers.iter().map(|(at, _)| at).collect();
        for at in servers {
            let Some(server) = self.servers.get_mut(at) else { continue };
            let Some(pool) = self.pools.get(server.pool) else { continue };
            match self.backends.fit(pool.key.access, &server.node) {
                Fit::Good => {}
                Fit::Cut => self.lose_server_because(
                    at,
                    "57P01",
                    "the server is no longer the one for this work; whether the statement took effect is not known",
                ),
                Fit::Retire => {
                    server.retire = true;
                    if pool.idle.contains(&at) {
                        self.drop_server(at);
                    }
                }
            }
        }
        for at in 0..self.pools.len() {
            if let Some(pool) = self.pools.get_mut(at) {
                pool.retry_at = Duration::ZERO;
            }
            self.open_more(at);
        }
    }

    /// Other options hold from now on: pools grow as they need to, and shrink as connections become free.
    pub(crate) fn adapt(&mut self, options: Arc<Options>) {
        for at in 0..self.pools.len() {
            if let Some(pool) = self.pools.get_mut(at) {
                pool.adapt(options.limits(&pool.key));
            }
            self.close_spent(at);
            self.open_more(at);
        }
        self.options = Some(options);
    }

    /// Carries out what an operator asks for.
    pub(crate) fn command(&mut self, command: Command) {
        match command {
            Command::Pause { database, done } => {
                self.pauses.pause(database.as_ref());
                self.pausing.push((database, done));
                self.take_pauses();
                self.note_paused();
            }
            Command::Resume { database } => {
                self.pauses.resume(database.as_ref());
                self.take_pauses();
                let touched = |of: &Option<Arc<str>>| of.is_none() || database.is_none() || *of == database;
                for (_, done) in self.pausing.extract_if(.., |(of, _)| touched(of)) {
                    // whoever waits may have gone; one word is enough
                    let _told = done.try_send(());
                }
                self.serve_waiting();
            }
            Command::Reconnect { database } => {
                for at in self.pools_of(database.as_ref()) {
                    if let Some(pool) = self.pools.get_mut(at) {
                        pool.generation += 1;
                    }
                    self.close_spent(at);
                }
            }
            Command::Kill { database, done } => {
                self.pauses.pause(database.as_ref());
                self.kills.kill(database.as_ref());
                self.take_pauses();
                self.kill(database.as_ref());
                drop(done);
            }
            Command::KillClient { client, done } => {
                if self.clients.contains(client) {
                    self.end_client(client, Severity::Fatal, "57P01", "an operator has ended the connection", "");
                    // whoever asked may have gone
                    let _told = done.try_send(());
                }
            }
            Command::EndCutOff { peers } => {
                // as the system's table of sockets has it
                let of = |peer: SocketAddr| SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let gone: Vec<usize> = self
                    .clients
                    .iter()
                    .filter(|(_, client)| peers.contains(&of(client.peer)))
                    .map(|(at, _)| at)
                    .collect();
                for at in gone {
                    self.end_client(
                        at,
                        Severity::Fatal,
                        "08006",
                        "the client does not hear any more: it is cut off",
                        "",
                    );
                }
            }
            Command::WaitClose { database, done } => {
                self.closing.push((database, done));
                self.note_closed();
            }
        }
    }

    /// Ends what there is of a database, or of all: statements that run are cancelled.
    fn kill(&mut self, database: Option<&Arc<str>>) {
        let pools = self.pools_of(database);
        let of_it = |pool: usize| pools.contains(&pool);
        let clients: Vec<usize> = self.clients.iter().filter(|(_, c)| of_it(c.pool)).map(|(at, _)| at).collect();
        for at in clients {
            self.end_client(at, Severity::Fatal, KILLED.0, KILLED.1, "");
        }
        let servers: Vec<usize> = self.servers.iter().filter(|(_, s)| of_it(s.pool)).map(|(at, _)| at).collect();
        for at in servers {
            self.drop_server(at);
        }
    }

    /// Tells whoever waits for it when no connection is left that is to be replaced.
    pub(crate) fn note_closed(&mut self) {
        let outdated = |of: &Option<Arc<str>>, server: &Server| {
            self.pools.get(server.pool).is_some_and(|pool| {
                of.as_ref().is_none_or(|database| *database == pool.key.database)
                    && (server.retire || server.generation < pool.generation)
            })
        };
        self.closing.retain(|(of, _)| self.servers.iter().any(|(_, server)| outdated(of, server)));
    }

    fn pools_of(&self, database: Option<&Arc<str>>) -> Vec<usize> {
        let named = |pool: &crate::pool::Pool| database.is_none_or(|database| *database == pool.key.database);
        (0..self.pools.len()).filter(|at| self.pools.get(*at).is_some_and(named)).collect()
    }

    fn take_pauses(&mut self) {
        for pool in &mut self.pools {
            pool.paused = self.pauses.holds(&pool.key.database);
        }
    }

    /// Gives unused servers to those who wait: after a pause.
    fn serve_waiting(&mut self) {
        for at in 0..self.pools.len() {
            while let Some(pool) = self.pools.get_mut(at)
                && !pool.paused
                && !pool.waiting.is_empty()
                && let Some(server) = pool.idle.pop()
            {
                self.hand_out(server);
            }
            self.hand_on();
            self.open_more(at);
        }
    }

    /// Tells whoever asked for a pause when none of its pools has a server in use.
    pub(crate) fn note_paused(&mut self) {
        let busy = |of: &Option<Arc<str>>, pool: &Pool| {
            of.as_ref().is_none_or(|database| *database == pool.key.database) && pool.idle.len() < pool.owned
        };
        self.pausing.retain(|(of, _)| self.pools.iter().any(|pool| pool.paused && busy(of, pool)));
    }

    /// Ends all clients and servers.
    pub(crate) fn stop(&mut self) {
        let clients: Vec<usize> = self.clients.iter().map(|(at, _)| at).collect();
        for at in clients {
            self.end_client(at, Severity::Fatal, "57P01", "the proxy is shutting down", "");
        }
        let servers: Vec<usize> = self.servers.iter().map(|(at, _)| at).collect();
        for at in servers {
            self.drop_server(at);
        }
    }

    /// What an operator is shown.
    pub(crate) fn view(&self, pools_alone: bool) -> WorkerView {
        let mut of_pool = vec![0; self.pools.len()];
        for (_, client) in &self.clients {
            if let Some(count) = of_pool.get_mut(client.home()) {
                *count += 1;
            }
        }
        let pools = self.pools.iter().enumerate().map(|(at, pool)| PoolView {
            key: pool.key.clone(),
            limits: pool.limits,
            clients: of_pool.get(at).copied().unwrap_or(0),
            waiting: pool.waiting.len(),
            longest_wait: pool.waiting.front().map_or(Duration::ZERO, |w| self.now.saturating_sub(w.since)),
            servers: pool.owned,
            idle: pool.idle.len(),
            opening: pool.opening,
            paused: pool.paused,
            counts: pool.counts,
            query_times: pool.query_times,
            wait_times: pool.wait_times,
        });
        let pools: Vec<PoolView> = pools.collect();
        if pools_alone {
            return WorkerView { pools, ..WorkerView::default() };
        }
        let clients = self.clients.iter().map(|(at, client)| ClientView {
            pid: self.client_pid(at),
            peer: client.peer,
            pool: self.pools.get(client.home()).map(|pool| pool.key.clone()),
            state: client.state.into(),
            in_state: self.now.saturating_sub(client.since),
            application_name: client.session.settings.get("application_name").unwrap_or_default().to_owned(),
            statements: client.session.named.len(),
        });
        let servers = self.servers.iter().map(|(_, server)| ServerView {
            pid: server.key.pid,
            node: server.node.clone(),
            pool: self.pools.get(server.pool).map(|pool| pool.key.clone()),
            client: server.client.map(|client| self.client_pid(client)),
            pinned: server.link.pinned,
            age: self.now.saturating_sub(server.opened),
        });
        WorkerView { pools, clients: clients.collect(), servers: servers.collect() }
    }
}
