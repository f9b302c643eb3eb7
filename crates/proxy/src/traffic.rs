//! Bytes arrive, bytes go on: the worker's hot path.
//!
//! A client's bytes: receive, find a server, walk, one write. A server's bytes: receive, walk, one write, and at the end
//! of a transaction the server goes to the next client. In steady state that is one receive and one send a direction,
//! and a share of one wait for events.

use std::io;

use crate::{
    frame::{Malformed, Spans},
    link::PoolMode,
    message::{self, Severity},
    peer::{ClientState, Server},
    pool::micros,
    walk::{self, ClientStep, ServerStep},
    worker::Worker,
};

/// How often one connection is received from before the others have their turn.
const RECEIVES_MAX: usize = 16;

impl Worker {
    /// Receives from a client as long as there is something and somewhere to put it.
    pub(crate) fn client_readable(&mut self, at: usize, buffer: &mut [u8]) {
        for _ in 0..RECEIVES_MAX {
            let blocked = self.is_client_blocked(at);
            let Some(client) = self.clients.get_mut(at) else { return };
            client.line.readable = blocked;
            if blocked {
                if client.line.hung_up {
                    self.lose_client(at);
                }
                return;
            }
            let received = match client.line.io.receive(buffer) {
                Ok(received) if received.bytes > 0 => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => return self.lose_client(at),
            };
            let drained = received.drained && !client.line.hung_up;
            if client.line.stash.is_empty() {
                let data = buffer.get(..received.bytes).unwrap_or_default();
                let consumed = self.forward_client(at, data);
                if let Some(rest) = data.get(consumed..).filter(|rest| !rest.is_empty())
                    && let Some(client) = self.clients.get_mut(at)
                {
                    client.line.stash.extend_from_slice(rest);
                }
            } else {
                client.line.stash.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
                self.forward_stash(at);
            }
            if drained {
                return;
            }
        }
        self.again.push_back((at, false));
    }

    /// The client's bytes wait: for a server, or for the server to take what it was sent.
    fn is_client_blocked(&self, at: usize) -> bool {
        let client = self.clients.get(at);
        match client.map(|client| client.state) {
            Some(ClientState::Attached(server)) => {
                let held = client.is_some_and(|client| client.route.as_ref().is_some_and(|route| route.held));
                let busy = |server: &Server| !server.line.unsent.is_empty() || server.link.reviewing;
                held || self.servers.get(server).is_some_and(busy)
            }
            Some(ClientState::Waiting | ClientState::Preparing(_)) => true,
            Some(ClientState::Idle) | None => false,
        }
    }

    /// Passes on what a client has sent earlier.
    pub(crate) fn forward_stash(&mut self, at: usize) {
        let Some(client) = self.clients.get_mut(at) else { return };
        let mut data = std::mem::take(&mut client.line.stash);
        let consumed = self.forward_client(at, &data);
        if let Some(client) = self.clients.get_mut(at)
            && consumed < data.len()
        {
            data.drain(..consumed);
            client.line.stash = data;
        }
    }

    /// Passes a client's bytes on; returns how many of them are dealt with.
    fn forward_client(&mut self, at: usize, data: &[u8]) -> usize {
        let Some(server_at) = (match self.server_for(at, data) {
            Ok(server) => server,
            Err(error) => {
                self.refuse_client(at, error);
                return data.len();
            }
        }) else {
            return self.skip(at, data);
        };
        let Some(may) = self.admitted(at, server_at, data) else {
            let text = "advisory locks keep nobody from anything on a replica, where this read-only transaction is";
            let hint = "begin it with /* millrace: primary */";
            self.end_client(at, Severity::Fatal, "0A000", text, hint);
            return data.len();
        };
        let Some(data) = data.get(..may).filter(|data| !data.is_empty()) else { return 0 };
        let (Some(client), Some(server)) = (self.clients.get_mut(at), self.servers.get_mut(server_at)) else {
            return 0;
        };
        let Some(pool) = self.pools.get_mut(server.pool) else { return 0 };
        let Some(statements) = self.statements.get_mut(pool.statements) else { return 0 };

        if server.link.expect.is_empty() {
            server.asked = self.now;
            if server.link.status == b'I' {
                server.began = self.now;
            }
        }
        let mut spans = Spans::new(data, &mut self.out);
        let walked =
            walk::client(&mut client.session, &mut server.link, statements, &mut spans, &mut self.replies, client.mode);
        let consumed = spans.consumed();
        let bytes = spans.finish();
        pool.counts.received_bytes += bytes.len() as u64;
        let sent = server.line.send(bytes);
        let replied = if self.replies.is_empty() { Ok(()) } else { client.line.send(&self.replies) };
        self.replies.clear();

        match (walked, sent, replied) {
            (Ok(ClientStep::More), Ok(()), Ok(())) => {
                // what is answered by nothing, such as rows that come too late, keeps no server
                if server.link.expect.is_empty() {
                    self.turn_ended(server_at);
                }
                consumed
            }
            (Err(error), ..) => {
                self.refuse_client(at, error);
                data.len()
            }
            (_, Err(_), _) => {
                self.lose_server(server_at);
                consumed
            }
            (Ok(ClientStep::Terminate), ..) | (_, _, Err(_)) => {
                self.lose_client(at);
                data.len()
            }
        }
    }

    /// Deals with what has no server: the rest of a series that was refused. Returns how many bytes that is.
    fn skip(&mut self, at: usize, data: &[u8]) -> usize {
        let Some(client) = self.clients.get_mut(at).filter(|client| client.session.skips_to_sync) else { return 0 };
        let (skipped, ready) = match walk::skip(&mut client.session, data) {
            Ok(skipped) => skipped,
            Err(error) => {
                self.refuse_client(at, error);
                return data.len();
            }
        };
        if ready {
            message::ready(&mut self.replies, b'I');
            let sent = client.line.send(&self.replies);
            self.replies.clear();
            if sent.is_err() {
                self.lose_client(at);
                return data.len();
            }
        }
        let goes_on = !client.session.skips_to_sync;
        match data.get(skipped..) {
            Some(rest) if goes_on && !rest.is_empty() => skipped + self.forward_client(at, rest),
            _ => skipped,
        }
    }

    /// The server for a client's next bytes; `None` if they have to wait, or need none.
    fn server_for(&mut self, at: usize, data: &[u8]) -> Result<Option<usize>, Malformed> {
        let Some(client) = self.clients.get(at) else { return Ok(None) };
        match client.state {
            ClientState::Attached(at) => {
                Ok(Some(at).filter(|at| self.servers.get(*at).is_none_or(|server| !server.link.reviewing)))
            }
            ClientState::Waiting | ClientState::Preparing(_) => Ok(None),
            ClientState::Idle if client.session.skips_to_sync => Ok(None),
            ClientState::Idle if walk::wants_server(&client.session, data)? => Ok(self.acquire(at, data)),
            ClientState::Idle => {
                if data.first() == Some(&b'X') {
                    self.lose_client(at);
                }
                Ok(None)
            }
        }
    }

    /// Receives from a server as long as there is something and its client takes it.
    pub(crate) fn server_readable(&mut self, at: usize, buffer: &mut [u8]) {
        for _ in 0..RECEIVES_MAX {
            let Some(server) = self.servers.get_mut(at) else { return };
            let client = server.client.and_then(|client| self.clients.get(client));
            server.line.readable = client.is_some_and(|client| !client.line.unsent.is_empty());
            if server.line.readable {
                return;
            }
            let received = match server.line.io.receive(buffer) {
                Ok(received) if received.bytes > 0 => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => return self.lose_server(at),
            };
            let drained = received.drained && !server.line.hung_up;
            if server.line.stash.is_empty() {
                let data = buffer.get(..received.bytes).unwrap_or_default();
                let consumed = self.forward_server(at, data);
                if let Some(rest) = data.get(consumed..).filter(|rest| !rest.is_empty())
                    && let Some(server) = self.servers.get_mut(at)
                {
                    server.line.stash.extend_from_slice(rest);
                }
            } else {
                server.line.stash.extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
                let mut data = std::mem::take(&mut server.line.stash);
                let consumed = self.forward_server(at, &data);
                if let Some(server) = self.servers.get_mut(at)
                    && consumed < data.len()
                {
                    data.drain(..consumed);
                    server.line.stash = data;
                }
            }
            if drained {
                return;
            }
        }
        self.again.push_back((at, true));
    }

    /// Passes a server's bytes on; returns how many of them are dealt with.
    fn forward_server(&mut self, at: usize, data: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let Some(server) = self.servers.get_mut(at) else { return data.len() };
            let client_at = server.client;
            let mut client = client_at.and_then(|client| self.clients.get_mut(client));
            let mut spans = Spans::new(rest, &mut self.out);
            let walked = walk::server(client.as_deref_mut().map(|c| &mut c.session), &mut server.link, &mut spans);
            let consumed = spans.consumed();
            let bytes = spans.finish();
            if let Some(pool) = self.pools.get_mut(server.pool) {
                pool.counts.sent_bytes += bytes.len() as u64;
                let (answered, ended) = walked.as_ref().map_or((0, 0), |step| (step.answered, step.ended));
                if client_at.is_some() && answered > 0 {
                    pool.counts.queries += answered;
                    let took = micros(self.now.saturating_sub(server.asked));
                    pool.counts.query_us += took;
                    pool.query_times.note(took / answered, answered);
                    server.asked = self.now;
                    if ended > 0 {
                        pool.counts.transactions += ended;
                        pool.counts.transaction_us += micros(self.now.saturating_sub(server.began));
                        server.began = self.now;
                    }
                }
            }
            if walked.is_ok_and(|step| step.ready)
                && let Some(route) = client.as_deref_mut().and_then(|client| client.route.as_mut())
            {
                // before the client hears of it, and after it happened
                route.note_written(server.pool, self.replay.as_deref());
            }
            let sent = client.map_or(Ok(()), |client| client.line.send(bytes));
            done += consumed;
            match (walked, sent) {
                (Err(error), _) => {
                    tracing::error!(%error, node = %server.node.name, "a server's answer cannot be read");
                    self.lose_server(at);
                    return data.len();
                }
                (_, Err(_)) => {
                    if let Some(client) = client_at {
                        self.lose_client(client);
                    }
                }
                (Ok(step), Ok(())) => {
                    self.after_server(at, step);
                    if step.own.is_none() && !step.behind {
                        break;
                    }
                }
            }
        }
        done
    }

    #[inline]
    fn after_server(&mut self, at: usize, step: ServerStep) {
        if step.fatal {
            if let Some(server) = self.servers.get_mut(at) {
                server.link.ended = true;
            }
            return self.lose_server(at);
        }
        if let Some(own) = step.own {
            self.own_answered(at, own);
        }
        if step.ready && self.servers.get(at).is_some_and(|server| server.link.expect.is_empty()) {
            self.turn_ended(at);
        }
    }

    /// Nothing more is owed: who has the server next?
    fn turn_ended(&mut self, at: usize) {
        let Some(server) = self.servers.get_mut(at) else { return };
        let Some(client_at) = server.client else { return self.rest_alone(at) };
        let Some(client) = self.clients.get(client_at) else { return };
        if client.session.body_left > 0 || client.state != ClientState::Attached(at) || server.link.waits_for_sync() {
            return;
        }
        let asked_for = !client.session.startup.is_empty();
        match (client.mode, server.link.status) {
            (PoolMode::Session, b'I') if server.link.suspect && asked_for => return self.probe(at, true),
            (PoolMode::Session, _) => {}
            (PoolMode::Statement, b'T' | b'E') => self.refuse_block(client_at),
            (_, b'T' | b'E') => {}
            _ if server.link.suspect => return self.probe(at, asked_for),
            _ if server.link.pinned => {}
            _ => self.release(at),
        }
        self.resume_held(client_at);
    }

    pub(crate) fn client_writable(&mut self, at: usize) {
        let Some(client) = self.clients.get_mut(at) else { return };
        if client.line.unsent.is_empty() {
            if client.line.io.flush().is_err() {
                self.lose_client(at);
            }
            return;
        }
        match client.line.flush() {
            Err(_) => self.lose_client(at),
            Ok(false) => {}
            Ok(true) => {
                if let ClientState::Attached(server) = client.state
                    && self.servers.get(server).is_some_and(|server| server.line.readable)
                {
                    self.again.push_back((server, true));
                }
            }
        }
    }

    pub(crate) fn server_writable(&mut self, at: usize) {
        let Some(server) = self.servers.get_mut(at) else { return };
        if server.line.unsent.is_empty() {
            if server.line.io.flush().is_err() {
                self.lose_server(at);
            }
            return;
        }
        match server.line.flush() {
            Err(_) => self.lose_server(at),
            Ok(false) => {}
            Ok(true) => {
                if let Some(client) = server.client
                    && self.clients.get(client).is_some_and(|client| client.line.readable)
                {
                    self.again.push_back((client, false));
                }
            }
        }
    }
}
