//! Histories that nobody has thought of, through the walk: any bytes, any messages in any pieces, any order of prepared
//! statements over any number of servers.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    frame::{HEADER_BYTES, Header, Spans, header},
    link::{Link, PoolMode, Session},
    message::{self, read_cstr},
    statements::{Definitions, Statements},
    walk,
};

/// A client's side of a conversation, with everything the walk needs.
struct Client {
    session: Session,
    statements: Statements,
}

impl Client {
    fn new() -> Self {
        Self { session: Session::new(std::rc::Rc::default()), statements: Statements::default() }
    }

    /// What goes to the server, to the client at once, and how much was taken; `None` if it is not the protocol.
    fn walk(&mut self, link: &mut Link, data: &[u8]) -> Option<(Vec<u8>, Vec<u8>, usize)> {
        let (mut out, mut replies) = (Vec::new(), Vec::new());
        let mut spans = Spans::new(data, &mut out);
        let walked = walk::client(
            &mut self.session,
            link,
            &mut self.statements,
            &mut spans,
            &mut replies,
            PoolMode::Transaction,
        );
        let consumed = spans.consumed();
        let sent = spans.finish().to_vec();
        walked.ok().map(|_| (sent, replies, consumed))
    }
}

/// A message of a client's.
#[derive(Debug, Clone)]
enum Sent {
    Query(&'static str),
    Parse(&'static str, &'static str),
    Bind(&'static str, &'static str),
    DescribeStatement(&'static str),
    DescribePortal(&'static str),
    CloseStatement(&'static str),
    ClosePortal(&'static str),
    Execute(&'static str),
    Flush,
    Sync,
}

const NAMES: [&str; 3] = ["", "a", "b"];
const TEXTS: [&str; 4] = ["one", "two", "three", "FAIL"];

fn sent() -> impl Strategy<Value = Sent> {
    let name = || proptest::sample::select(&NAMES[..]);
    let text = || proptest::sample::select(&TEXTS[..]);
    prop_oneof![
        1 => text().prop_map(Sent::Query),
        4 => (name(), text()).prop_map(|(name, text)| Sent::Parse(name, text)),
        4 => (name(), name()).prop_map(|(portal, name)| Sent::Bind(portal, name)),
        1 => name().prop_map(Sent::DescribeStatement),
        1 => name().prop_map(Sent::DescribePortal),
        1 => name().prop_map(Sent::CloseStatement),
        1 => name().prop_map(Sent::ClosePortal),
        4 => name().prop_map(Sent::Execute),
        1 => Just(Sent::Flush),
        3 => Just(Sent::Sync),
    ]
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let put = |tag, parts: &[&[u8]], out: &mut Vec<u8>| {
            message::message(out, tag, |body| parts.iter().for_each(|part| body.extend_from_slice(part)));
        };
        let of = |kind: &[u8], name: &str| [kind, name.as_bytes(), b"\0"].concat();
        match self {
            Self::Query(text) => message::query(&mut out, text),
            Self::Parse(name, text) => put(b'P', &[&of(b"", name), &of(b"", text), &[0, 0]], &mut out),
            Self::Bind(portal, name) => put(b'B', &[&of(b"", portal), &of(b"", name), &[0; 6]], &mut out),
            Self::DescribeStatement(name) => put(b'D', &[&of(b"S", name)], &mut out),
            Self::DescribePortal(name) => put(b'D', &[&of(b"P", name)], &mut out),
            Self::CloseStatement(name) => put(b'C', &[&of(b"S", name)], &mut out),
            Self::ClosePortal(name) => put(b'C', &[&of(b"P", name)], &mut out),
            Self::Execute(name) => put(b'E', &[&of(b"", name), &[0; 4]], &mut out),
            Self::Flush => put(b'H', &[], &mut out),
            Self::Sync => put(b'S', &[], &mut out),
        }
        out
    }
}

/// A server that does what PostgreSQL does with statements and portals, and says which text it has run.
#[derive(Debug, Default)]
struct Model {
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    portals: BTreeMap<Vec<u8>, Vec<u8>>,
    failed: bool,
    /// Part of a message.
    received: Vec<u8>,
}

impl Model {
    fn error(&mut self, code: &str, out: &mut Vec<u8>) {
        message::error(out, message::Severity::Error, code, "model", "");
        self.failed = true;
        // the transaction of the series is over
        self.portals.clear();
    }

    fn answer(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.received.extend_from_slice(data);
        while let Ok(Some(Header { tag, len })) = header(&self.received)
            && len <= self.received.len()
        {
            let message: Vec<u8> = self.received.drain(..len).collect();
            self.one(tag, &message[HEADER_BYTES..], &mut out);
        }
        out
    }

    fn one(&mut self, tag: u8, mut body: &[u8], out: &mut Vec<u8>) {
        if self.failed && tag != b'S' {
            return;
        }
        let empty = |tag: u8, out: &mut Vec<u8>| message::message(out, tag, |_| {});
        let ran = |text: &[u8], out: &mut Vec<u8>| message::message(out, b'C', |body| message::cstr(body, text));
        match tag {
            b'Q' => {
                self.portals.clear();
                self.statements.remove(&b""[..]);
                let text = read_cstr(&mut body).unwrap();
                if text == b"FAIL" {
                    self.error("22012", out)
                } else {
                    ran(text, out)
                }
                self.failed = false;
                message::ready(out, b'I');
            }
            b'S' => {
                self.failed = false;
                self.portals.clear();
                message::ready(out, b'I');
            }
            b'P' => {
                let (name, text) = (read_cstr(&mut body).unwrap(), read_cstr(&mut body).unwrap());
                if name.is_empty() {
                    // also if the new one is wrong (exec_parse_message)
                    self.statements.remove(name);
                }
                if text == b"FAIL" {
                    self.error("42601", out);
                } else if !name.is_empty() && self.statements.contains_key(name) {
                    self.error("42P05", out);
                } else {
                    self.statements.insert(name.to_vec(), text.to_vec());
                    empty(b'1', out);
                }
            }
            b'B' => {
                let (portal, name) = (read_cstr(&mut body).unwrap(), read_cstr(&mut body).unwrap());
                match self.statements.get(name).cloned() {
                    None => self.error("26000", out),
                    Some(_) if !portal.is_empty() && self.portals.contains_key(portal) => self.error("42P03", out),
                    Some(text) => {
                        self.portals.insert(portal.to_vec(), text);
                        empty(b'2', out);
                    }
                }
            }
            b'D' | b'C' => {
                let statement = body.first() == Some(&b'S');
                body = &body[1..];
                let name = read_cstr(&mut body).unwrap();
                let known = if statement { &mut self.statements } else { &mut self.portals };
                if tag == b'C' {
                    known.remove(name);
                    return empty(b'3', out);
                }
                match known.get(name) {
                    None => self.error(if statement { "26000" } else { "34000" }, out),
                    Some(_) => {
                        if statement {
                            message::message(out, b't', |body| body.extend_from_slice(&[0, 0]));
                        }
                        empty(b'n', out);
                    }
                }
            }
            b'E' => {
                let name = read_cstr(&mut body).unwrap();
                match self.portals.get(name).cloned() {
                    None => self.error("34000", out),
                    Some(text) => ran(&text, out),
                }
            }
            b'H' => {}
            other => panic!("the proxy sends {other}"),
        }
    }
}

/// One server connection: what the proxy knows of it, and what it is.
struct Server {
    link: Link,
    model: Model,
}

/// Runs a client's messages through the proxy: in pieces, each series on the server that `turns` says. The client waits
/// for the answer to each series, or sends all `ahead`.
fn through(messages: &[Sent], pieces: &[usize], turns: &[usize], statements_max: usize, ahead: bool) -> Vec<u8> {
    let mut client = Client::new();
    let mut servers: Vec<Server> = (0..3)
        .map(|_| Server { link: Link::new(statements_max, Definitions::default()), model: Model::default() })
        .collect();
    let all: Vec<u8> = messages.iter().flat_map(Sent::bytes).collect();
    let (mut ends, mut length) = (Vec::new(), 0);
    for message in messages {
        length += message.bytes().len();
        if matches!(message, Sent::Sync | Sent::Query(_)) {
            ends.push(length);
        }
    }
    let (mut at, mut received, mut turn, mut now) = (0, 0, 0, None);
    let mut pieces = pieces.iter().cycle();
    let mut seen = Vec::new();
    while at < all.len() {
        let end = ends.iter().copied().find(|end| *end > at).filter(|_| !ahead).unwrap_or(all.len());
        received = (received + pieces.next().copied().unwrap_or(1)).min(end);
        let data = &all[at..received];
        if now.is_none() && walk::wants_server(&client.session, data).unwrap() {
            now = Some(turns[turn % turns.len()] % servers.len());
            turn += 1;
        }
        let Some(server) = now.map(|at| &mut servers[at]) else {
            assert!(received < all.len(), "a whole message wants a server");
            continue;
        };
        let (sent, replies, consumed) = client.walk(&mut server.link, data).unwrap();
        at += consumed;
        seen.extend_from_slice(&replies);
        let answer = server.model.answer(&sent);
        let mut out = Vec::new();
        let mut spans = Spans::new(&answer, &mut out);
        let step = walk::server(Some(&mut client.session), &mut server.link, &mut spans).unwrap();
        assert!(!step.fatal && spans.rest().is_empty());
        seen.extend_from_slice(spans.finish());
        if server.link.is_at_rest() && client.session.body_left == 0 {
            now = None;
        }
        if received == all.len() && consumed == 0 {
            break;
        }
    }
    seen
}

/// The answers' types, with the texts that were run and the codes of errors.
fn readable(mut data: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    while let Ok(Some(Header { tag, len })) = header(data) {
        let body = &data[HEADER_BYTES..len];
        said.push(match tag {
            b'C' => format!("C {}", String::from_utf8_lossy(body)),
            b'E' => format!("E {}", message::error_field(body, b'C').unwrap_or_default()),
            other => char::from(other).to_string(),
        });
        data = &data[len..];
    }
    said
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    /// What the client is told, and in which order, is what a server of its own would have said.
    #[test]
    fn the_proxy_is_a_server_of_ones_own(
        mut messages in proptest::collection::vec(sent(), 1..40),
        pieces in proptest::collection::vec(1usize..200, 1..20),
        turns in proptest::collection::vec(0usize..3, 1..10),
        statements_max in 1usize..4,
    ) {
        messages.push(Sent::Sync);
        // no driver sends a simple query into an open series
        for at in (1..messages.len()).rev() {
            if matches!(messages[at], Sent::Query(_)) && !matches!(messages[at - 1], Sent::Sync | Sent::Query(_)) {
                messages.insert(at, Sent::Sync);
            }
        }
        let direct = Model::default().answer(&messages.iter().flat_map(Sent::bytes).collect::<Vec<_>>());
        let direct = readable(&direct);
        prop_assert_eq!(&readable(&through(&messages, &pieces, &turns, statements_max, false)), &direct);
        // sent ahead, what comes after an error can find a statement whose Parse the server has skipped
        let ahead = readable(&through(&messages, &pieces, &turns, statements_max, true));
        let before = direct.iter().take_while(|said| !said.starts_with('E')).count();
        prop_assert_eq!(&ahead[..before.min(ahead.len())], &direct[..before]);
        let ends = |all: &[String]| all.iter().filter(|said| *said == "Z").count();
        prop_assert_eq!(ends(&ahead), ends(&direct));
    }

    /// Nothing that a client sends makes the proxy fall, or take more than there is.
    #[test]
    fn any_bytes_of_a_client(
        data in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(0u8), proptest::sample::select(&b"QPBDCESHFdcfX"[..])], 0..300),
        pieces in proptest::collection::vec(1usize..50, 1..10),
    ) {
        let (mut client, mut link) = (Client::new(), Link::new(2, Definitions::default()));
        let (mut at, mut received) = (0, 0);
        for piece in pieces.iter().cycle().take(300) {
            received = (received + piece).min(data.len());
            match client.walk(&mut link, &data[at..received]) {
                Some((sent, _, consumed)) => {
                    prop_assert!(consumed <= received - at);
                    prop_assert!(sent.len() <= 40 * (consumed + 1));
                    at += consumed;
                }
                None => break,
            }
        }
    }

    /// Nor does anything that a server says, whatever it is asked.
    #[test]
    fn any_bytes_of_a_server(
        messages in proptest::collection::vec(sent(), 0..10),
        data in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(0u8), proptest::sample::select(&b"RSKZTtDCcGHWdEN123nsIAV"[..])], 0..300),
    ) {
        let (mut client, mut link) = (Client::new(), Link::new(2, Definitions::default()));
        for message in &messages {
            let _answered = client.walk(&mut link, &message.bytes());
        }
        let mut out = Vec::new();
        let mut spans = Spans::new(&data, &mut out);
        let _any = walk::server(Some(&mut client.session), &mut link, &mut spans);
        prop_assert!(spans.consumed() <= data.len());
    }
}

/// A server that says goodbye right behind its answer says it to nobody whose turn is over.
#[test]
fn a_farewell_behind_an_answer_is_left_for_later() {
    let (mut client, mut link) = (Client::new(), Link::new(2, Definitions::default()));
    client.walk(&mut link, &Sent::Query("one").bytes()).unwrap();
    let mut answer = Model::default().answer(&Sent::Query("one").bytes());
    let length = answer.len();
    message::error(&mut answer, message::Severity::Fatal, "57P01", "model", "");
    let mut out = Vec::new();
    let mut spans = Spans::new(&answer, &mut out);
    let step = walk::server(Some(&mut client.session), &mut link, &mut spans).unwrap();
    assert!(step.ready && step.behind && !step.fatal);
    assert_eq!(spans.consumed(), length);
    let mut spans = Spans::new(&answer[length..], &mut out);
    let step = walk::server(None, &mut link, &mut spans).unwrap();
    assert!(step.fatal && spans.finish().is_empty());
}
