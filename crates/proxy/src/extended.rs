//! Prepared statements on their way to a server: named anew by their text, parsed only where they are not yet.
//!
//! Invariants: what the client is told, and in which order, is what a server of its own would have said; a client can
//! name no statement but its own.

use std::{borrow::Cow, rc::Rc};

use crate::{
    frame::{HEADER_BYTES, Header, Malformed, Spans},
    hint::{self, Hint, TextHint},
    link::{Change, Expect, Link, Session},
    message::{self, read_cstr},
    statements::{Needed, PREFIX, Statement, Statements},
    walk,
};

/// The longest Parse: it must be here as a whole.
const PARSE_BYTES_MAX: usize = 16 << 20;
/// A client may hold this many named statements.
const NAMED_MAX: usize = 16_384;
/// Does nothing, returns no rows, and fails where any statement does: in an aborted transaction.
pub(crate) const NOTHING: &str = "DO 'BEGIN END'";

/// Whether a message that must be whole may be waited for.
pub(crate) fn may_wait(head: Header) -> Result<(), Malformed> {
    if head.tag == b'P' && head.len > PARSE_BYTES_MAX { Err(Malformed::TooLong(head.len)) } else { Ok(()) }
}

/// Parse, Bind, Describe or Close, of which the names at least are here.
pub(crate) fn rewrite(
    session: &mut Session,
    link: &mut Link,
    statements: &mut Statements,
    spans: &mut Spans<'_>,
    replies: &mut Vec<u8>,
    head: Header,
) -> Result<(), Malformed> {
    let here = spans.rest();
    let here = here.get(..head.len).unwrap_or(here);
    let mut body = message::body(here);
    match head.tag {
        b'P' => {
            let name = read_cstr(&mut body)?;
            parse(session, link, statements, spans, replies, name, body)?;
            spans.skip(head.len);
        }
        b'B' => {
            let portal = read_cstr(&mut body)?;
            let name = read_cstr(&mut body)?;
            let statement = lookup(session, name).cloned();
            let hint = statement.as_ref().map_or(Hint::default(), |s| s.hint);
            link.suspect |= hint.suspect;
            if portal.is_empty() {
                link.portal_hint = hint;
            }
            match &statement {
                Some(statement) => {
                    note_custom(session, &statement.custom);
                    hold(link, spans, statement);
                    rename(session, spans, head, [(portal, portal), (name, &statement.name)]);
                }
                None => rename(session, spans, head, [(portal, portal), (name, &foreign(name))]),
            }
            link.expect.push_back(Expect::Bind);
        }
        _ => {
            let (&kind, mut rest) = body.split_first().ok_or(Malformed::Short)?;
            let name = read_cstr(&mut rest)?;
            let statement = if kind == b'S' { lookup(session, name) } else { None };
            match (head.tag, statement) {
                (b'C', Some(_)) => {
                    let change = Change { name: name.into(), before: session.name(name, None) };
                    spans.skip(head.len);
                    local(session, link, replies, Expect::LocalClose, change);
                }
                (b'D', Some(statement)) => {
                    hold(link, spans, statement);
                    let new = statement.name.clone();
                    spans.skip(head.len);
                    message::message(spans.insert(), b'D', |out| {
                        out.push(b'S');
                        message::cstr(out, &new);
                    });
                    link.expect.push_back(Expect::Describe);
                }
                (tag, _) => {
                    let kind = [kind];
                    let new = if kind == *b"S" { foreign(name) } else { name.into() };
                    let (old, new) = ([&kind, name].concat(), [&kind, &*new].concat());
                    rename(session, spans, head, [(&old, &new)]);
                    link.expect.push_back(if tag == b'D' { Expect::Describe } else { Expect::Close });
                }
            }
        }
    }
    Ok(())
}

/// A name that is not the client's: the server says that it does not exist, also if another client's is called so there.
fn foreign(name: &[u8]) -> Cow<'_, [u8]> {
    if name.starts_with(PREFIX) { [b"?", name].concat().into() } else { name.into() }
}

fn lookup<'a>(session: &'a Session, name: &[u8]) -> Option<&'a Rc<Statement>> {
    if name.is_empty() { session.unnamed.as_ref() } else { session.named.get(name) }
}

/// A Parse whose name and definition are given; what goes to the server is put in.
fn parse(
    session: &mut Session,
    link: &mut Link,
    statements: &mut Statements,
    spans: &mut Spans<'_>,
    replies: &mut Vec<u8>,
    name: &[u8],
    definition: &[u8],
) -> Result<(), Malformed> {
    let (text, types) = message::take_cstr(definition).ok_or(Malformed::Short)?;
    let statement = if deallocates(session, text) {
        let definition = [NOTHING.as_bytes(), b"\0", types].concat();
        statements.intern(&definition, || TextHint::new(Hint { deallocated: true, ..Hint::default() }))
    } else {
        statements.intern(definition, || hint::of_text(text))
    };
    if !name.is_empty() && session.named.contains_key(name) {
        // the server says it best, of a statement that it holds: there is one of this name
        hold(link, spans, &statement);
        put_parse(spans.insert(), &statement);
        link.expect.push_back(Expect::Parse(0));
        return Ok(());
    }
    if !name.is_empty() && session.named.len() >= NAMED_MAX {
        return Err(Malformed::TooLong(NAMED_MAX));
    }
    let change = Change { name: name.into(), before: session.name(name, Some(statement.clone())) };
    if send_parse(link, spans, &statement) {
        link.expect.push_back(Expect::Parse(statement.id));
        session.changes.push_back(change);
    } else {
        local(session, link, replies, Expect::LocalParse(statement.id), change);
    }
    Ok(())
}

/// An answer of our own: now, if nothing is owed before it, else at its turn.
fn local(session: &mut Session, link: &mut Link, replies: &mut Vec<u8>, answer: Expect, change: Change) {
    match walk::local_tag(&answer) {
        Some(tag) if link.expect.is_empty() => replies.extend_from_slice(&[tag, 0, 0, 0, 4]),
        _ => {
            link.expect.push_back(answer);
            session.changes.push_back(change);
        }
    }
}

/// Makes sure that the server holds a statement that the client parsed elsewhere.
fn hold(link: &mut Link, spans: &mut Spans<'_>, statement: &Statement) {
    if send_parse(link, spans, statement) {
        link.expect.push_back(Expect::OwnParse(statement.id));
    }
}

/// Sends a Parse if the server does not hold the statement; whether it was sent.
fn send_parse(link: &mut Link, spans: &mut Spans<'_>, statement: &Statement) -> bool {
    let Needed::Parse { evict } = link.held.use_(statement.id) else { return false };
    let out = spans.insert();
    if let Some(oldest) = evict {
        message::message(out, b'C', |out| {
            out.push(b'S');
            out.extend_from_slice(PREFIX);
            message::cstr(out, oldest.to_string().as_bytes());
        });
        link.expect.push_back(Expect::OwnClose(oldest));
    }
    put_parse(out, statement);
    true
}

fn put_parse(out: &mut Vec<u8>, statement: &Statement) {
    message::message(out, b'P', |out| {
        message::cstr(out, &statement.name);
        out.extend_from_slice(&statement.definition);
    });
}

/// Passes a message on with the texts after its header replaced: pairs of old and new.
fn rename<const N: usize>(session: &mut Session, spans: &mut Spans<'_>, head: Header, texts: [(&[u8], &[u8]); N]) {
    let old: usize = texts.iter().map(|(old, _)| old.len() + 1).sum();
    let new: usize = texts.iter().map(|(_, new)| new.len() + 1).sum();
    spans.skip(HEADER_BYTES + old);
    let out = spans.insert();
    let length = u32::try_from(head.len - 1 - old + new).unwrap_or(u32::MAX);
    out.push(head.tag);
    out.extend_from_slice(&length.to_be_bytes());
    texts.iter().for_each(|(_, new)| message::cstr(out, new));
    let left = head.len - HEADER_BYTES - old;
    let now = left.min(spans.rest().len());
    spans.pass(now);
    session.body_left = left - now;
}

/// Remembers the names of settings that a server does not list.
pub(crate) fn note_custom(session: &mut Session, names: &[Box<str>]) {
    const CUSTOM_MAX: usize = 100;
    for name in names {
        if session.custom.len() < CUSTOM_MAX && !session.custom.contains(name) {
            session.custom.push(name.clone());
        }
    }
}

/// Carries out DEALLOCATE of a statement that the client prepared by protocol.
pub(crate) fn deallocates(session: &mut Session, text: &[u8]) -> bool {
    hint::deallocated_name(text).is_some_and(|name| session.named.remove(name.as_bytes()).is_some())
}
