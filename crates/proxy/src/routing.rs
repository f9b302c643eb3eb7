//! Which pool a client's next statements go to: replicas or the primary.
//!
//! Invariants: what is not known to read goes to the primary; a client reads from a replica only what the replica has
//! replayed since the client wrote last.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use millrace_contract::status::NodeRole;

use crate::{
    backends::{Access, Node},
    grammar::Meaning,
    peer::ClientState,
    pool::Waiting,
    route,
    worker::Worker,
};

impl Worker {
    /// The round of replay that was begun last.
    pub(crate) fn round(&self) -> u64 {
        self.replay.as_ref().map_or(0, |replay| replay.begun())
    }

    /// How far a replica is.
    pub(crate) fn round_of(&self, node: &Node) -> Option<Arc<AtomicU64>> {
        let replay = self.replay.as_ref().filter(|_| node.role == NodeRole::Replica)?;
        Some(replay.round_of(&node.name))
    }

    /// Chooses the pool for what a client, which has no server, sends next.
    pub(crate) fn choose_pool(&mut self, at: usize, data: &[u8]) {
        let Some(client) = self.clients.get_mut(at) else { return };
        let Some(route) = &mut client.route else { return };
        let series = match self.pools.get(route.writers).and_then(|pool| pool.catalog.as_ref()) {
            Some(catalog) if !is_serializable(&client.session.settings) => {
                route::series(&client.session, data, &mut self.texts, catalog)
            }
            _ => None,
        };
        let meaning = series.map_or(Meaning::Unsure, |(meaning, _)| meaning);
        let reads = meaning.reads();
        let fresh = reads && self.replicas.iter().any(|round| round.load(Ordering::Acquire) > route.wrote);
        client.pool = if fresh { route.readers } else { route.writers };
        // what comes with it is not looked at on its way to the primary
        route.reads = meaning == Meaning::Read && series.is_some_and(|(_, length)| length == data.len());
        route.admitted = true;
        if reads
            && !fresh
            && let Some(pool) = self.pools.get_mut(route.writers)
        {
            pool.counts.behind += 1;
        }
    }

    /// How much of `data` may go to the server that a client has; the rest waits. `None`: none of it, ever.
    pub(crate) fn admitted(&mut self, client_at: usize, server_at: usize, data: &[u8]) -> Option<usize> {
        let (Some(client), Some(server)) = (self.clients.get_mut(client_at), self.servers.get(server_at)) else {
            return Some(data.len());
        };
        let Some(route) = &mut client.route else { return Some(data.len()) };
        if server.pool == route.writers {
            route.reads &= std::mem::take(&mut route.admitted);
            return Some(data.len());
        }
        let Some(catalog) = self.pools.get(route.writers).and_then(|pool| pool.catalog.as_ref()) else {
            return Some(data.len());
        };
        let in_transaction = server.link.status != b'I';
        let may = route::for_replica(&client.session, &server.link, route, data, &mut self.texts, catalog);
        route.held = may < data.len();
        let refused = in_transaction && route::locks(data.get(..may).unwrap_or_default());
        (!refused).then_some(may)
    }

    /// Whether a server can serve what a client waits with: a replica may not have replayed what it wrote.
    pub(crate) fn suits(&self, client: usize, server: usize) -> bool {
        let (Some(client), Some(server)) = (self.clients.get(client), self.servers.get(server)) else { return true };
        match &client.route {
            Some(route) if server.pool == route.readers => {
                server.replayed.as_ref().is_some_and(|round| round.load(Ordering::Acquire) > route.wrote)
            }
            _ => true,
        }
    }

    /// A client that waits for a replica waits for the primary instead.
    pub(crate) fn wait_for_primary(&mut self, waiting: Waiting) {
        let Some(client) = self.clients.get_mut(waiting.client) else { return };
        let Some(route) = &mut client.route else { return };
        let at = route.writers;
        (client.pool, route.reads) = (at, false);
        let Some(pool) = self.pools.get_mut(at) else { return };
        pool.counts.behind += 1;
        pool.waiting.push_back(waiting);
        if !pool.paused
            && let Some(server) = pool.idle.pop()
        {
            return self.hand_out(server);
        }
        self.open_more(at);
        self.note_starving(at);
    }

    /// There are no replicas to wait for in this pool: those who could do with the primary go there.
    pub(crate) fn leave_replicas(&mut self, at: usize) {
        let clients = &self.clients;
        let Some(pool) = self.pools.get_mut(at).filter(|pool| pool.key.access == Access::ReadOnly) else { return };
        let routed = |w: &Waiting| clients.get(w.client).is_some_and(|client| client.route.is_some());
        let (leave, stay): (VecDeque<_>, VecDeque<_>) = pool.waiting.drain(..).partition(routed);
        pool.waiting = stay;
        for waiting in leave {
            self.wait_for_primary(waiting);
        }
    }

    /// Notes which replicas take reads.
    pub(crate) fn note_replicas(&mut self) {
        let Some(replay) = &self.replay else { return };
        self.replicas = self.backends.replicas().map(|node| replay.round_of(&node.name)).collect();
        if self.replicas.is_empty() {
            for at in 0..self.pools.len() {
                self.leave_replicas(at);
            }
        }
    }

    /// Passes on what waited until a replica had answered.
    pub(crate) fn resume_held(&mut self, at: usize) {
        let Some(client) = self.clients.get_mut(at) else { return };
        let held = client.route.as_mut().is_some_and(|route| std::mem::take(&mut route.held));
        if held && !matches!(client.state, ClientState::Waiting | ClientState::Preparing(_)) {
            self.resume_client(at);
        }
    }
}

/// A replica refuses what is to be serializable.
fn is_serializable(settings: &crate::settings::Settings) -> bool {
    !settings.is_empty()
        && settings.get("default_transaction_isolation").is_some_and(|level| level.eq_ignore_ascii_case("serializable"))
}
