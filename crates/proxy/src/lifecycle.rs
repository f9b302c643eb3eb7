//! Which client has which server: from the first statement to the last, and when either of them goes away.
//!
//! Invariants: a server serves one client at a time, and is free for another only when nothing is owed, no transaction is
//! open and nothing of the first client is left in it; a statement that was sent is never sent again.

use tokio::sync::mpsc as control;

use crate::{
    backends::Access,
    frame,
    link::{Expect, Own, PoolMode},
    message::{self, Severity},
    peer::ClientState,
    pool::Waiting,
    settings,
    worker::{OpenError, Request, Worker},
};

/// A statement's end is not known.
const LOST: (&str, &str) =
    ("08006", "the connection to the server was lost; whether the statement took effect is not known");

/// As a server says it.
const CANCELLED: (&str, &str) = ("57014", "canceling statement due to user request");

impl Worker {
    /// A server for a client that has something to send; without one, the client waits its turn.
    pub(crate) fn acquire(&mut self, at: usize, data: &[u8]) -> Option<usize> {
        self.choose_pool(at, data);
        let pool_at = self.clients.get(at)?.pool;
        let pool = self.pools.get_mut(pool_at)?;
        if pool.waiting.is_empty() && !pool.paused {
            let server = match pool.key.access {
                Access::ReadWrite => pool.idle.pop(),
                Access::ReadOnly => self.least_busy(pool_at, at),
            };
            if let Some(server) = server {
                self.pools.get_mut(pool_at)?.wait_times.note(0, 1);
                return self.attach(at, server);
            }
        }
        let (client, pool) = (self.clients.get_mut(at)?, self.pools.get_mut(pool_at)?);
        client.state = ClientState::Waiting;
        client.since = self.now;
        pool.waiting.push_back(Waiting { client: at, since: self.now });
        self.open_more(pool_at);
        self.note_starving(pool_at);
        None
    }

    /// Takes the unused connection to the node that has the fewest in use, of those that suit the client.
    fn least_busy(&mut self, pool_at: usize, client: usize) -> Option<usize> {
        self.busy.clear();
        self.busy.resize(self.nodes(), 0);
        for (_, server) in &self.servers {
            if let Some(busy) = self.busy.get_mut(server.node_at).filter(|_| server.client.is_some()) {
                *busy += 1;
            }
        }
        let busy = |server: usize| self.servers.get(server).and_then(|s| self.busy.get(s.node_at)).copied();
        // of one node, the last one used is used first, so that the others can grow old
        let idle = self.pools.get(pool_at)?.idle.iter().enumerate().rev();
        let (position, _) =
            idle.filter(|(_, server)| self.suits(client, **server)).min_by_key(|(_, server)| busy(**server))?;
        Some(self.pools.get_mut(pool_at)?.idle.remove(position))
    }

    /// Gives a server to a client. The server can be used at once, or when it has the client's settings.
    fn attach(&mut self, client_at: usize, server_at: usize) -> Option<usize> {
        let (client, server) = (self.clients.get_mut(client_at)?, self.servers.get_mut(server_at)?);
        (server.client, server.free) = (Some(client_at), false);
        server.since = self.now;
        let outdated = server.link.stale && !server.link.held.is_empty();
        (server.link.stale, server.link.reviewing) = (false, false);
        let differ = !settings::same(&server.link.settings, &client.session.settings);
        if !outdated && !differ {
            client.state = ClientState::Attached(server_at);
            return Some(server_at);
        }
        client.state = ClientState::Preparing(server_at);
        if outdated {
            self.ask(server_at, Own::Forget);
        }
        if differ {
            self.ask(server_at, Own::Settings);
        }
        None
    }

    /// Sends a question of the proxy's own.
    pub(crate) fn ask(&mut self, at: usize, own: Own) {
        let Some(server) = self.servers.get_mut(at) else { return };
        let client = server.client.and_then(|client| self.clients.get(client));
        let login = self.pools.get(server.pool).map_or("", |pool| &*pool.key.user);
        let text = match (own, client) {
            (Own::Settings, Some(client)) => {
                server.link.coming = client.session.settings.clone();
                settings::replay(&server.link.settings, &server.link.coming)
            }
            (Own::Probe, Some(client)) => {
                server.link.suspect = false;
                server.link.state = settings::SessionState::default();
                settings::probe(login, &client.session.custom)
            }
            (Own::Settings | Own::Probe, None) => return,
            (Own::Rollback, _) => "ROLLBACK".to_owned(),
            (Own::Reset, _) => "DISCARD ALL".to_owned(),
            (Own::Forget, _) => "DEALLOCATE ALL".to_owned(),
        };
        server.link.expect.push_back(Expect::Own(own));
        let mut bytes = Vec::new();
        message::query(&mut bytes, &text);
        if server.line.send(&bytes).is_err() {
            self.lose_server(at);
        }
    }

    /// Asks what the session keeps; `reviewing`, the client waits for it.
    pub(crate) fn probe(&mut self, at: usize, reviewing: bool) {
        if let Some(server) = self.servers.get_mut(at) {
            server.link.reviewing = reviewing;
        }
        self.ask(at, Own::Probe);
    }

    /// A question of the proxy's own is answered.
    pub(crate) fn own_answered(&mut self, at: usize, own: Own) {
        let Some(server) = self.servers.get_mut(at) else { return };
        if let Some(error) = server.link.own_error.take() {
            return self.own_failed(at, own, &error);
        }
        match own {
            Own::Settings => server.link.settings = server.link.coming.clone(),
            Own::Forget => server.link.held.clear(),
            Own::Rollback => {}
            Own::Reset => {
                server.link.held.clear();
                server.link.settings = Default::default();
                (server.link.suspect, server.link.pinned, server.link.dirty) = (false, false, false);
            }
            Own::Probe => {
                let state = std::mem::take(&mut server.link.state);
                server.link.pinned = !state.pins.is_empty();
                let seen = std::rc::Rc::new(state.settings);
                if let Some(client) = server.client.and_then(|client| self.clients.get_mut(client)) {
                    client.session.settings = if client.session.startup.is_empty() {
                        seen.clone()
                    } else {
                        (*seen).clone().over(&client.session.startup).into()
                    };
                }
                server.link.settings = seen;
            }
        }
        let waits = server.client.filter(|client| {
            self.clients.get(*client).is_some_and(|client| client.state == ClientState::Preparing(at))
        });
        if let Some(client_at) = waits
            && server.link.expect.is_empty()
            && let Some(client) = self.clients.get_mut(client_at)
        {
            if std::mem::take(&mut client.cancelled) {
                client.state = ClientState::Idle;
                server.client = None;
                // whoever looks next finds the server without a client
                return self.refuse_waiting(client_at, CANCELLED.0, CANCELLED.1, "");
            }
            client.state = ClientState::Attached(at);
            return self.resume_client(client_at);
        }
        self.review(at);
    }

    /// What the client asked for when it connected, and has reset since, is made again before its next statement.
    fn review(&mut self, at: usize) {
        let Some(server) = self.servers.get_mut(at).filter(|s| s.link.reviewing && s.link.expect.is_empty()) else {
            return;
        };
        let Some(client_at) = server.client else { return };
        let Some(client) = self.clients.get(client_at) else { return };
        if !settings::same(&server.link.settings, &client.session.settings) {
            return self.ask(at, Own::Settings);
        }
        server.link.reviewing = false;
        if client.line.readable {
            self.again.push_back((client_at, false));
        }
    }

    fn own_failed(&mut self, at: usize, own: Own, error: &str) {
        let Some(server) = self.servers.get_mut(at) else { return };
        match own {
            // not knowing what the session keeps, it stays where it is
            Own::Probe => {
                server.link.pinned = true;
                server.link.reviewing = false;
                if let Some(client) = server.client {
                    self.again.push_back((client, false));
                }
            }
            Own::Settings => {
                let client = server.client.take();
                tracing::warn!(node = %server.node.name, "a client's settings cannot be made on another connection");
                self.drop_server(at);
                if let Some(client) = client {
                    let text = format!("the session's settings cannot be made on another server connection: {error}");
                    self.detach(client);
                    self.end_client(client, Severity::Fatal, "57000", &text, "reconnect, or use a session pool");
                }
            }
            Own::Forget | Own::Rollback | Own::Reset => self.lose_server(at),
        }
    }

    /// Passes on what a client has sent while it waited, and receives more.
    pub(crate) fn resume_client(&mut self, at: usize) {
        self.forward_stash(at);
        if self.clients.get(at).is_some_and(|client| client.line.readable) {
            self.again.push_back((at, false));
        }
    }

    /// The transaction is over: the server is free for the next client.
    pub(crate) fn release(&mut self, at: usize) {
        let Some(server) = self.servers.get_mut(at) else { return };
        if let Some(client) = server.client.take() {
            self.detach(client);
        }
        self.server_free(at);
    }

    fn detach(&mut self, at: usize) {
        let Some(client) = self.clients.get_mut(at) else { return };
        client.state = ClientState::Idle;
        client.since = self.now;
        if client.line.readable {
            self.again.push_back((at, false));
        }
    }

    /// One that was taken from the unused goes to those who wait.
    pub(crate) fn hand_out(&mut self, at: usize) {
        if let Some(server) = self.servers.get_mut(at) {
            server.free = false;
        }
        self.server_free(at);
    }

    /// A server without a client goes to those who wait, to the unused ones, or away. Said twice of one, it is done once.
    pub(crate) fn server_free(&mut self, at: usize) {
        let Some(server) = self.servers.get_mut(at) else { return };
        if server.cancelling || server.free {
            return;
        }
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        let age = self.now.saturating_sub(server.opened);
        let wanted_elsewhere = pool.gives_up_one();
        server.since = self.now;
        if server.retire || wanted_elsewhere || pool.is_spent(age, std::time::Duration::ZERO, server.generation) {
            return self.drop_server(at);
        }
        server.free = true;
        if pool.paused {
            pool.idle.push(at);
            return self.note_paused();
        }
        if pool.waiting.is_empty() {
            return pool.idle.push(at);
        }
        // not from in here: whoever gets it may give it back in the same breath
        self.freed.push_back(at);
    }

    /// Gives servers that have become free to those who wait longest, until none is left of either.
    #[inline]
    pub(crate) fn hand_on(&mut self) {
        while let Some(at) = self.freed.pop_front() {
            self.give(at);
        }
    }

    fn give(&mut self, at: usize) {
        let Some(server) = self.servers.get(at) else { return };
        let pool_at = server.pool;
        let next = loop {
            let Some(pool) = self.pools.get_mut(pool_at) else { return };
            if pool.paused {
                pool.idle.push(at);
                return self.note_paused();
            }
            let Some(next) = pool.waiting.pop_front() else { return pool.idle.push(at) };
            if self.suits(next.client, at) {
                break next;
            }
            self.wait_for_primary(next);
        };
        if let Some(pool) = self.pools.get_mut(pool_at) {
            pool.note_wait(self.now.saturating_sub(next.since));
        }
        if self.attach(next.client, at).is_some() {
            self.resume_client(next.client);
        }
    }

    /// A server whose client has gone and that owes nothing.
    pub(crate) fn rest_alone(&mut self, at: usize) {
        let Some(server) = self.servers.get(at) else { return };
        match server.link.status {
            b'I' if server.link.dirty => self.ask(at, Own::Reset),
            b'I' => self.server_free(at),
            _ => self.ask(at, Own::Rollback),
        }
    }

    /// A client has gone, by its own will or not.
    pub(crate) fn lose_client(&mut self, at: usize) {
        let Some(client) = self.clients.get(at) else { return };
        let (state, partial, pool_at) = (client.state, client.session.body_left > 0, client.pool);
        let session = client.mode == PoolMode::Session;
        self.drop_client(at);
        match state {
            ClientState::Idle => {}
            ClientState::Waiting => {
                if let Some(pool) = self.pools.get_mut(pool_at) {
                    pool.waiting.retain(|w| w.client != at);
                }
                self.note_starving(pool_at);
            }
            ClientState::Preparing(server) | ClientState::Attached(server) => self.abandon(server, partial, session),
        }
    }

    /// A server has lost its client: in the middle of something it is of no use any more.
    fn abandon(&mut self, at: usize, partial: bool, session: bool) {
        let Some(server) = self.servers.get_mut(at) else { return };
        server.client = None;
        let link = &mut server.link;
        // a probe on its way would find what the client has left, and nobody to keep it for
        let asked = link.expect.contains(&Expect::Own(Own::Probe));
        link.dirty |= session || link.pinned || link.suspect || asked;
        let owes = link.expect.iter().any(|e| !matches!(e, Expect::Own(_)));
        if partial || owes || link.body_left > 0 || link.waits_for_sync() {
            self.request_cancel(at, None);
            return self.drop_server(at);
        }
        if link.expect.is_empty() {
            self.rest_alone(at);
        }
    }

    /// A server has gone; its client is told what that means for it.
    pub(crate) fn lose_server(&mut self, at: usize) {
        let (code, text) = LOST;
        self.lose_server_because(at, code, text);
    }

    /// As [`Worker::lose_server`], with the reason.
    pub(crate) fn lose_server_because(&mut self, at: usize, code: &str, text: &str) {
        let Some(server) = self.servers.get_mut(at) else { return };
        let client_at = server.client.take();
        let pool_at = server.pool;
        let link = &server.link;
        tracing::info!(node = %server.node.name, in_use = client_at.is_some(), owed = link.expect.len(), "a server connection is lost");
        let ended = link.ended;
        let partial = link.body_left > 0 || !server.line.stash.is_empty();
        // each of these is an answer that ends with ReadyForQuery
        let ends = link.expect.iter().filter(|e| matches!(e, Expect::Query(_) | Expect::Sync)).count();
        let alone = link.status == b'I' && !link.pinned && !link.copy_in && !link.waits_for_sync() && ends > 0;
        let (told, whole) = (link.error_passed, !link.expect.iter().any(|e| matches!(e, Expect::Own(_))));
        self.drop_server(at);
        let Some(client_at) = client_at else { return };
        let Some(client) = self.clients.get_mut(client_at) else { return };
        let session = client.mode == PoolMode::Session;
        if client.state == ClientState::Preparing(at) {
            // nothing of the client's was sent: it waits for another, before all others
            client.state = ClientState::Waiting;
            if let Some(pool) = self.pools.get_mut(pool_at) {
                pool.waiting.push_front(Waiting { client: client_at, since: client.since });
            }
            if std::mem::take(&mut client.cancelled) {
                return self.refuse_waiting(client_at, CANCELLED.0, CANCELLED.1, "");
            }
            return self.open_more(pool_at);
        }
        self.detach(client_at);
        let Some(client) = self.clients.get_mut(client_at) else { return };
        // what is not answered never came about
        let changes = std::mem::take(&mut client.session.changes);
        client.session.undo(changes.into_iter());
        if let Some(route) = &mut client.route {
            // it may have been done although nobody said so
            route.note_written(pool_at, self.replay.as_deref());
        }
        if !alone || !whole || partial || session || client.session.body_left > 0 {
            if ended {
                // the server itself has told it, last of all
                return self.lose_client(client_at);
            }
            return self.end_client(client_at, Severity::Fatal, code, text, "");
        }
        let mut bytes = Vec::new();
        for answer in 0..ends {
            if answer > 0 || !told {
                message::error(&mut bytes, Severity::Error, code, text, "");
            }
            message::ready(&mut bytes, b'I');
        }
        if client.line.send(&bytes).is_err() {
            self.lose_client(client_at);
        }
        self.resume_held(client_at);
    }

    /// What a client sent is not the protocol.
    pub(crate) fn refuse_client(&mut self, at: usize, error: frame::Malformed) {
        self.end_client(at, Severity::Fatal, "08P01", &error.to_string(), "");
    }

    /// A transaction block where only single statements are served.
    pub(crate) fn refuse_block(&mut self, at: usize) {
        let text = "transaction blocks are not allowed in statement pooling";
        self.end_client(at, Severity::Fatal, "0A000", text, "use a pool with pool_mode = \"transaction\"");
    }

    /// Tells a client why, and closes it.
    pub(crate) fn end_client(&mut self, at: usize, severity: Severity, code: &str, text: &str, hint: &str) {
        let Some(client) = self.clients.get_mut(at) else { return };
        tracing::info!(peer = %client.peer, code, "proxy client ended: {text}");
        let mut bytes = Vec::new();
        message::error(&mut bytes, severity, code, text, hint);
        // it is closed either way
        let _gone = client.line.send(&bytes);
        self.lose_client(at);
    }

    /// Refuses what a client waits to send, and lets it go on if that is possible.
    pub(crate) fn refuse_waiting(&mut self, at: usize, code: &str, text: &str, hint: &str) {
        let Some(client) = self.clients.get_mut(at) else { return };
        let Some(refused) = refusable(&client.line.stash) else {
            return self.end_client(at, Severity::Fatal, code, text, hint);
        };
        let pool_at = client.pool;
        client.line.stash = client.line.stash.split_off(refused.bytes);
        let mut bytes = Vec::new();
        for _ in 0..refused.series {
            message::error(&mut bytes, Severity::Error, code, text, hint);
            message::ready(&mut bytes, b'I');
        }
        if refused.open {
            message::error(&mut bytes, Severity::Error, code, text, hint);
            client.session.skips_to_sync = true;
        }
        let sent = client.line.send(&bytes);
        if let Some(pool) = self.pools.get_mut(pool_at) {
            pool.refused(at, self.now);
        }
        self.detach(at);
        if sent.is_err() {
            self.lose_client(at);
        }
    }

    pub(crate) fn drop_client(&mut self, at: usize) {
        let Some(mut client) = self.clients.try_remove(at) else { return };
        let _closed_anyway = client.line.io.deregister(self.poll.registry());
        client.line.io.shutdown();
    }

    /// Closes a server and gives its place in the pool back. Its client, if any, is not told.
    pub(crate) fn drop_server(&mut self, at: usize) {
        let Some(mut server) = self.servers.try_remove(at) else { return };
        if server.link.is_at_rest() {
            // in order, if it takes it; it is closed either way
            let _gone = server.line.send(b"X\0\0\0\x04");
        }
        let _closed_anyway = server.line.io.deregister(self.poll.registry());
        server.line.io.shutdown();
        self.freed.retain(|freed| *freed != at);
        let Some(pool) = self.pools.get_mut(server.pool) else { return };
        pool.idle.retain(|idle| *idle != at);
        pool.owned = pool.owned.saturating_sub(1);
        pool.shared.give_back();
        if !pool.waiting.is_empty() && !pool.is_wanted_elsewhere() {
            self.open_more(server.pool);
        }
        self.note_starving(server.pool);
        self.note_paused();
        self.note_closed();
    }

    /// A client's own cancel request.
    pub(crate) fn cancel(&mut self, at: usize, secret: i32, done: control::Sender<()>) {
        let Some(client) = self.clients.get_mut(at).filter(|client| client.secret == secret) else { return };
        match client.state {
            ClientState::Attached(server) => self.request_cancel(server, Some(done)),
            ClientState::Waiting => self.refuse_waiting(at, CANCELLED.0, CANCELLED.1, ""),
            // it waits for the proxy's own statement, which is soon over
            ClientState::Preparing(_) => client.cancelled = true,
            ClientState::Idle => {}
        }
    }

    /// Asks for the cancellation of what a server does now; until that is done, it serves nobody else.
    /// `done` is dropped then.
    pub(crate) fn request_cancel(&mut self, at: usize, done: Option<control::Sender<()>>) {
        let Some(server) = self.servers.get_mut(at) else { return };
        // a question of the proxy's own is not the client's to cancel
        if server.cancelling || server.link.expect.iter().all(|e| matches!(e, Expect::Own(_))) {
            return;
        }
        let request = Request::Cancel {
            worker: self.index,
            server: at,
            serial: server.serial,
            node: server.node.clone(),
            key: server.key,
            done,
        };
        server.cancelling = self.control.try_send(request).is_ok();
    }

    pub(crate) fn cancelled(&mut self, at: usize, serial: u64) {
        let Some(server) = self.servers.get_mut(at).filter(|server| server.serial == serial) else { return };
        server.cancelling = false;
        if server.client.is_none() && server.link.is_at_rest() && !server.link.dirty {
            self.server_free(at);
        }
    }

    /// A connection that was asked for could not be had.
    pub(crate) fn tell_waiting(&mut self, pool_at: usize, error: &OpenError) {
        let Some(pool) = self.pools.get(pool_at) else { return };
        let waiting: Vec<usize> = pool.waiting.iter().map(|w| w.client).collect();
        for client in waiting {
            self.refuse_waiting(client, &error.code, &error.message, "");
        }
    }

    /// Others that hold connections of this pool are told when this worker has clients that wait and less than its share.
    pub(crate) fn note_starving(&mut self, pool_at: usize) {
        let Some(pool) = self.pools.get_mut(pool_at) else { return };
        let starving = pool.is_short();
        if starving != pool.starves {
            pool.starves = starving;
            pool.shared.note_starving(starving);
        }
    }
}

/// What a client has sent that no server has seen, so that the session can go on when it is refused.
#[derive(Debug, Default, PartialEq, Eq)]
struct Refusable {
    /// Each is owed an answer with ReadyForQuery.
    series: usize,
    /// One more has begun: its error is owed, and ReadyForQuery when its Sync is here.
    open: bool,
    /// Of all messages that are whole.
    bytes: usize,
}

/// `None` if it cannot be refused message by message.
fn refusable(data: &[u8]) -> Option<Refusable> {
    let mut found = Refusable::default();
    while let Some((tag, rest)) = data.get(found.bytes..).and_then(|rest| Some((*rest.first()?, rest))) {
        let length = frame::header(rest).ok()?.map(|head| head.len).filter(|length| *length <= rest.len());
        match tag {
            b'Q' | b'S' | b'F' if length.is_some() => (found.series, found.open) = (found.series + 1, false),
            b'P' | b'B' | b'D' | b'C' | b'E' | b'H' | b'S' => found.open = true,
            _ => return None,
        }
        let Some(length) = length else { break };
        found.bytes += length;
    }
    (found.series > 0 || found.open).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted() {
        let mut data = Vec::new();
        message::query(&mut data, "SELECT 1");
        let query = data.len();
        data.extend_from_slice(b"P\0\0\0\x04S\0\0\0\x04");
        let refused = |data: &[u8]| refusable(data).map(|of| (of.series, of.open, of.bytes));
        assert_eq!(refused(&data), Some((2, false, data.len())));
        // the Sync is not here yet, or not all of it
        for missing in 1..=5 {
            assert_eq!(refused(&data[..data.len() - missing]), Some((1, true, data.len() - 5)), "{missing}");
        }
        assert_eq!(refused(&data[..query + 1]), Some((1, true, query)));
        assert_eq!(refused(&data[..query - 1]), None);
        assert_eq!(refused(b"d\0\0\0\x04"), None);
        assert_eq!(refused(b""), None);
    }
}
