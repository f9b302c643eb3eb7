//! The hot path: from message to message through the bytes of either side. Pure: bytes in, [`Spans`] out.
//!
//! Only headers are read, and of few messages more than that: a query's text for a few words, the names of prepared
//! statements, command tags, ReadyForQuery. Nothing is allocated unless a statement is new, no lock is taken, nothing
//! is logged.

use crate::{
    extended,
    frame::{HEADER_BYTES, Header, Malformed, Spans, header},
    hint::{self, Hint, TagHint, TextHint},
    link::{Expect, Link, Own, PoolMode, Session},
    message,
    statements::Statements,
};

/// A message of which more must be known than its header waits until it is here, up to this; it is at most as long as
/// what is received at once.
pub(crate) const WHOLE_BYTES_MAX: usize = 64 << 10;

/// Why the walk through a client's bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientStep {
    /// All that is whole has been passed on.
    More,
    /// The client says goodbye.
    Terminate,
}

/// Whether the walk could take a step with these bytes: only then is a server wanted.
#[inline]
pub(crate) fn wants_server(session: &Session, data: &[u8]) -> Result<bool, Malformed> {
    if session.body_left > 0 {
        return Ok(true);
    }
    Ok(header(data)?.is_some_and(|h| data.len() >= h.len || data.len() >= WHOLE_BYTES_MAX)
        && data.first() != Some(&b'X'))
}

/// From the client to the server. Answers that need no server go to `replies`.
pub(crate) fn client(
    session: &mut Session,
    link: &mut Link,
    statements: &mut Statements,
    spans: &mut Spans<'_>,
    replies: &mut Vec<u8>,
    mode: PoolMode,
) -> Result<ClientStep, Malformed> {
    loop {
        let rest = spans.rest();
        if session.body_left > 0 {
            let now = session.body_left.min(rest.len());
            spans.pass(now);
            session.body_left -= now;
            if session.body_left > 0 {
                return Ok(ClientStep::More);
            }
            continue;
        }
        let Some(head) = header(rest)? else { return Ok(ClientStep::More) };
        let whole = rest.get(..head.len);
        let reads_ahead = matches!(head.tag, b'Q' | b'B' | b'D' | b'C' | b'P');
        if whole.is_none() && reads_ahead && (rest.len() < WHOLE_BYTES_MAX || head.tag == b'P') {
            return extended::may_wait(head).map(|()| ClientStep::More);
        }
        match head.tag {
            b'P' | b'B' | b'D' | b'C' | b'E' => link.unsynced = true,
            b'Q' | b'F' => link.unsynced = false,
            b'S' if !link.copy_in => link.unsynced = false,
            _ => {}
        }
        match head.tag {
            b'Q' | b'F' | b'P' | b'B' | b'D' | b'C' | b'E' if link.skips_to_sync => {}
            b'Q' if mode == PoolMode::Session => expect(link, Expect::Query(Hint::default())),
            b'Q' => {
                if query(session, link, spans, whole.unwrap_or(rest), whole.is_some()) {
                    continue;
                }
            }
            b'P' | b'B' | b'D' | b'C' if mode != PoolMode::Session => {
                extended::rewrite(session, link, statements, spans, replies, head)?;
                continue;
            }
            b'P' => expect(link, Expect::Parse(0)),
            b'B' => expect(link, Expect::Bind),
            b'D' => expect(link, Expect::Describe),
            b'C' => expect(link, Expect::Close),
            b'E' => expect(link, Expect::Execute(link.portal_hint)),
            b'S' if link.copy_in => {}
            b'S' => {
                link.skips_to_sync = false;
                expect(link, Expect::Sync);
            }
            b'F' => expect(link, Expect::Query(Hint { suspect: true, ..Hint::default() })),
            b'c' | b'f' => {
                link.copy_in = false;
                expect(link, Expect::CopyEnd);
            }
            b'd' | b'H' => {}
            b'X' => return Ok(ClientStep::Terminate),
            other => return Err(Malformed::Type(other)),
        }
        pass(session, spans, head);
    }
}

/// Drops what a client sends after it was refused, up to its Sync: how many bytes, and whether the Sync was among them.
pub(crate) fn skip(session: &mut Session, data: &[u8]) -> Result<(usize, bool), Malformed> {
    let mut at = 0;
    loop {
        let rest = data.get(at..).unwrap_or_default();
        let now = session.skip_left.min(rest.len());
        if now > 0 {
            session.skip_left -= now;
            at += now;
            continue;
        }
        match header(rest)? {
            Some(Header { tag: b'S', len }) if rest.len() >= len => {
                session.skips_to_sync = false;
                return Ok((at + len, true));
            }
            Some(Header { tag: b'X', .. }) => {
                session.skips_to_sync = false;
                return Ok((at, false));
            }
            Some(Header { tag: b'S', .. }) | None => return Ok((at, false)),
            Some(Header { len, .. }) => session.skip_left = len,
        }
    }
}

/// Passes a message on, as much of it as is here.
pub(crate) fn pass(session: &mut Session, spans: &mut Spans<'_>, head: Header) {
    let now = head.len.min(spans.rest().len());
    spans.pass(now);
    session.body_left = head.len - now;
}

#[inline]
fn expect(link: &mut Link, answer: Expect) {
    // a mark matters only where answers are owed
    if answer != Expect::CopyEnd || !link.expect.is_empty() {
        link.expect.push_back(answer);
    }
}

/// A simple query; whether it was replaced by one of ours.
fn query(session: &mut Session, link: &mut Link, spans: &mut Spans<'_>, message: &[u8], whole: bool) -> bool {
    let text = message::body(message);
    let TextHint { mut hint, custom } = hint::of_text(text);
    // what is too long to be read is suspected
    hint.suspect |= !whole;
    extended::note_custom(session, &custom);
    // as a server does with its own
    session.unnamed = None;
    if whole && extended::deallocates(session, text) {
        hint.deallocated = true;
        spans.skip(message.len());
        message::query(spans.insert(), extended::NOTHING);
        link.expect.push_back(Expect::Query(hint));
        return true;
    }
    link.suspect |= hint.suspect;
    link.expect.push_back(Expect::Query(hint));
    false
}

/// What the walk through a server's bytes has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ServerStep {
    /// ReadyForQuery was among them: look whether the server is at rest.
    pub(crate) ready: bool,
    /// How many of them answered the client.
    pub(crate) answered: u64,
    /// How many of them ended a transaction.
    pub(crate) ended: u64,
    /// The server has said that it ends the connection.
    pub(crate) fatal: bool,
    /// A query of ours is answered.
    pub(crate) own: Option<Own>,
    /// What comes next is not for the client whose turn has ended.
    pub(crate) behind: bool,
}

/// From the server to the client; without a client, to nobody. Stops after an answer to a query of ours.
pub(crate) fn server(
    mut session: Option<&mut Session>,
    link: &mut Link,
    spans: &mut Spans<'_>,
) -> Result<ServerStep, Malformed> {
    let mut step = ServerStep::default();
    loop {
        let rest = spans.rest();
        if link.body_left > 0 {
            let now = link.body_left.min(rest.len());
            if link.body_passes {
                spans.pass(now)
            } else {
                spans.skip(now)
            }
            link.body_left -= now;
            if link.body_left > 0 {
                return Ok(step);
            }
            continue;
        }
        let Some(head) = header(rest)? else { return Ok(step) };
        let whole = rest.get(..head.len);
        let reads = matches!(head.tag, b'Z' | b'C' | b'E');
        let own = matches!(link.expect.front(), Some(Expect::Own(_)));
        // what is made again after a RESET, the client is told
        let told = head.tag == b'S' && link.reviewing && link.expect.front() == Some(&Expect::Own(Own::Settings));
        if whole.is_none() && (reads || own) && rest.len() < WHOLE_BYTES_MAX {
            return Ok(step);
        }
        if head.tag == b'E' && step.ready && link.expect.is_empty() {
            // a farewell behind the answer: it is for whoever has the server then
            step.behind = true;
            return Ok(step);
        }
        let message = whole.unwrap_or(rest);
        if own && head.tag != b'A' && !told {
            spans.skip(message.len());
            link.body_left = head.len - message.len();
            link.body_passes = false;
            step.own = own_answer(link, head.tag, message);
            if step.own.is_some() {
                step.ready = true;
                local_answers(session.as_deref_mut(), link, spans);
                return Ok(step);
            }
            continue;
        }
        let passes = match head.tag {
            b'D' | b'd' | b'N' | b'A' | b'S' | b'c' | b'V' => true,
            b'C' | b'I' | b's' => executed(session.as_deref_mut(), link, spans, head.tag, message),
            b'T' | b'n' => pop_if(link, |front| front == Expect::Describe),
            b't' | b'H' | b'W' => true,
            b'G' => {
                copy_begins(link);
                true
            }
            b'1' => {
                if matches!(link.expect.front(), Some(Expect::Parse(1..)))
                    && let Some(session) = session.as_deref_mut()
                {
                    session.changes.pop_front();
                }
                answered(link, |front| matches!(front, Expect::Parse(_) | Expect::OwnParse(_)))
            }
            b'2' => answered(link, |front| front == Expect::Bind),
            b'3' => answered(link, |front| matches!(front, Expect::Close | Expect::OwnClose(_))),
            b'E' => {
                failed(session.as_deref_mut(), link, message);
                step.fatal = matches!(message::error_field(message::body(message), b'V'), Some("FATAL" | "PANIC"));
                true
            }
            b'Z' => {
                link.status = message.get(HEADER_BYTES).copied().unwrap_or(b'E');
                link.copy_in = false;
                link.skips_to_sync = false;
                link.error_passed = false;
                step.ready = true;
                step.answered += 1;
                step.ended += u64::from(link.status == b'I');
                let passes = answered(link, |front| matches!(front, Expect::Query(_) | Expect::Sync));
                if link.redefines && link.status == b'I' {
                    link.redefines = false;
                    link.definitions.outdate();
                }
                // the Sync that this answers may have been taken for one within a COPY
                link.unsynced &= !link.expect.is_empty();
                passes
            }
            other => return Err(Malformed::Type(other)),
        };
        if passes && session.is_some() {
            spans.pass(message.len())
        } else {
            spans.skip(message.len())
        }
        link.body_left = head.len - message.len();
        link.body_passes = passes && session.is_some();
        if step.fatal {
            return Ok(step);
        }
        local_answers(session.as_deref_mut(), link, spans);
    }
}

/// Takes the answer that was waited for off the queue; whether the client is to hear of it.
#[inline]
fn answered(link: &mut Link, is: impl Fn(Expect) -> bool) -> bool {
    match link.expect.front() {
        Some(&front) if is(front) => {
            link.expect.pop_front();
            !matches!(front, Expect::OwnParse(_) | Expect::OwnClose(_))
        }
        _ => true,
    }
}

fn pop_if(link: &mut Link, is: impl Fn(Expect) -> bool) -> bool {
    if link.expect.front().is_some_and(|front| is(*front)) {
        link.expect.pop_front();
    }
    true
}

/// What the proxy says itself, now that its turn has come.
#[inline]
pub(crate) fn local_answers(mut session: Option<&mut Session>, link: &mut Link, spans: &mut Spans<'_>) {
    while let Some(front) = link.expect.front() {
        match local_tag(front) {
            Some(tag) => {
                spans.insert().extend_from_slice(&[tag, 0, 0, 0, 4]);
                if let Some(session) = session.as_deref_mut() {
                    session.changes.pop_front();
                }
            }
            // a mark that nothing before it has use for
            None if *front == Expect::CopyEnd => {}
            None => return,
        }
        link.expect.pop_front();
    }
}

pub(crate) fn local_tag(front: &Expect) -> Option<u8> {
    match front {
        Expect::LocalParse(_) => Some(b'1'),
        Expect::LocalClose => Some(b'3'),
        _ => None,
    }
}

/// CommandComplete, EmptyQueryResponse, PortalSuspended.
fn executed(session: Option<&mut Session>, link: &mut Link, spans: &mut Spans<'_>, tag: u8, message: &[u8]) -> bool {
    let hint = match link.expect.front().copied() {
        Some(Expect::Execute(hint)) => {
            link.expect.pop_front();
            hint
        }
        Some(Expect::Query(hint)) => hint,
        _ => Hint::default(),
    };
    if tag != b'C' {
        return true;
    }
    if hint.deallocated {
        message::complete(spans.insert(), "DEALLOCATE");
        return false;
    }
    match hint::of_tag(message::body(message)) {
        TagHint::None => {}
        TagHint::Set => link.suspect |= !hint.local_set,
        TagHint::Suspect => link.suspect = true,
        TagHint::Definition => {
            // for its own transaction now, for others when it has committed
            link.definitions.outdate();
            link.redefines = true;
            link.suspect |= link.pinned;
        }
        TagHint::Deallocated => {
            link.suspect = true;
            link.held.clear();
            // but for what was sent after it
            for answer in &link.expect {
                if let Expect::Parse(id @ 1..) | Expect::OwnParse(id) = answer {
                    link.held.keep(*id);
                }
            }
            if let Some(session) = session {
                let changes = &session.changes;
                session.named.retain(|name, _| changes.iter().any(|change| change.name == *name));
            }
        }
    }
    true
}

/// The server waits for the client's rows: what was sent before them as Sync, it ignores.
fn copy_begins(link: &mut Link) {
    let ended = link.expect.iter().position(|e| *e == Expect::CopyEnd);
    link.copy_in = ended.is_none();
    let mut at = 0;
    link.expect.retain(|e| {
        let ignored = *e == Expect::Sync && ended.is_none_or(|end| at < end);
        at += 1;
        !ignored
    });
}

/// ErrorResponse: what was to follow up to the next Sync does not happen.
fn failed(session: Option<&mut Session>, link: &mut Link, message: &[u8]) {
    let field = |name| message::error_field(message::body(message), name);
    match field(b'C') {
        // a plan that no longer fits: of all that is not supported, this alone comes from here
        Some("0A000") if field(b'R') == Some("RevalidateCachedQuery") => link.definitions.outdate(),
        // a statement that is not there after all
        Some("26000") => link.stale = true,
        _ => {}
    }
    link.copy_in = false;
    link.error_passed = true;
    if matches!(link.expect.front(), Some(Expect::Query(_)) | None) {
        return;
    }
    let sync = link.expect.iter().position(|e| *e == Expect::Sync);
    link.skips_to_sync = sync.is_none();
    let skipped: Vec<Expect> = link.expect.drain(..sync.unwrap_or(link.expect.len())).collect();
    for answer in skipped.iter().rev() {
        match *answer {
            Expect::Parse(id) | Expect::OwnParse(id) => link.held.remove(id),
            Expect::OwnClose(id) => link.held.keep(id),
            _ => {}
        }
    }
    if let Some(session) = session {
        let count = skipped.iter().filter(|answer| answer.changes()).count().min(session.changes.len());
        // a Parse without a name that fails, rather than being skipped, has dropped what was there before
        if let (Some(Expect::Parse(1..)), Some(change)) = (skipped.first(), session.changes.front_mut())
            && change.name.is_empty()
        {
            change.before = None;
        }
        let changes: Vec<_> = session.changes.drain(..count).collect();
        session.undo(changes.into_iter());
    }
}

/// One message of the answer to a query of ours; which, if it was the last.
fn own_answer(link: &mut Link, tag: u8, message: &[u8]) -> Option<Own> {
    let Some(&Expect::Own(own)) = link.expect.front() else { return None };
    match tag {
        b'D' if own == Own::Probe => link.state.row(message::body(message)),
        b'E' => link.own_error = Some(message::error_field(message::body(message), b'M').unwrap_or("error").into()),
        b'Z' => {
            link.status = message.get(HEADER_BYTES).copied().unwrap_or(b'E');
            link.expect.pop_front();
            return Some(own);
        }
        _ => {}
    }
    None
}
