//! Which of a client's statements a replica can do: from the bytes it sent, before they go anywhere.
//!
//! A client's messages come in series: a simple query, or extended messages up to their Sync. A series goes to a replica
//! only if all of it is here, every statement of it reads ([`crate::grammar`]), and it cannot leave anything in the
//! session. Pure: no I/O.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use millrace_contract::topology::Replay;

use crate::{
    catalog::Catalog,
    frame::{Header, header},
    grammar::{self, Meaning},
    link::{Link, Session},
    message::{self, read_cstr},
};

/// What holds for a client whose statements are looked at.
#[derive(Debug)]
pub(crate) struct Route {
    /// The pool of the primary.
    pub(crate) writers: usize,
    /// The pool of replicas.
    pub(crate) readers: usize,
    /// The round of [`millrace_contract::topology::Replay`] that was begun when the client wrote last: it reads only
    /// from replicas that have reached a later one.
    pub(crate) wrote: u64,
    /// The series that it waits with, or has a server for, surely writes nothing.
    pub(crate) reads: bool,
    /// The first series is judged already.
    pub(crate) admitted: bool,
    /// Part of what it sent waits until the replica it has is given back.
    pub(crate) held: bool,
}

impl Route {
    /// Of a client that has seen nothing yet: it reads what was committed before it came.
    pub(crate) fn new(writers: usize, readers: usize, wrote: u64) -> Self {
        Self { writers, readers, wrote, reads: false, admitted: false, held: false }
    }

    /// What it did on a server of `pool` is done: if it may have written, that was before the next round.
    pub(crate) fn note_written(&mut self, pool: usize, replay: Option<&Replay>) {
        if pool == self.writers && !self.reads {
            self.wrote = replay.map_or(0, Replay::begun);
        }
    }
}

/// What texts mean, kept for those that come again.
#[derive(Debug)]
pub(crate) struct Texts {
    known: HashMap<Box<[u8]>, (u64, Meaning)>,
    bytes: usize,
    /// Hashes of texts that were seen once: one that never comes again is not kept.
    seen: Box<[u64]>,
    hasher: RandomState,
    /// Room for a text without its values.
    shape: Vec<u8>,
}

const TEXTS_MAX: usize = 4_096;
const TEXT_BYTES_MAX: usize = 4 << 20;
const SEEN: usize = 4_096;

impl Default for Texts {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            bytes: 0,
            seen: vec![0; SEEN].into(),
            hasher: RandomState::new(),
            shape: Vec::new(),
        }
    }
}

impl Texts {
    /// What `text` means where `catalog` holds. It does not depend on the values of literals, so that one judgement
    /// serves all texts that differ in them alone.
    pub(crate) fn meaning(&mut self, text: &[u8], catalog: &Catalog) -> Meaning {
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        let mut shape = std::mem::take(&mut self.shape);
        let key = if shape_of(text, &mut shape) { &shape } else { text };
        let meaning = self.of_key(key, text, catalog);
        self.shape = shape;
        meaning
    }

    fn of_key(&mut self, key: &[u8], text: &[u8], catalog: &Catalog) -> Meaning {
        if let Some((version, meaning)) = self.known.get_mut(key) {
            if *version != catalog.version {
                (*version, *meaning) = (catalog.version, judge(text, catalog));
            }
            return *meaning;
        }
        let meaning = judge(text, catalog);
        let hash = self.hasher.hash_one(key) | 1;
        let Some(seen) = usize::try_from(hash >> 32).ok().and_then(|at| self.seen.get_mut(at % SEEN)) else {
            return meaning;
        };
        if std::mem::replace(seen, hash) == hash && key.len() <= grammar::TEXT_BYTES_MAX {
            if self.known.len() >= TEXTS_MAX || self.bytes + key.len() > TEXT_BYTES_MAX {
                self.known.clear();
                self.bytes = 0;
            }
            self.bytes += key.len();
            self.known.insert(key.into(), (catalog.version, meaning));
        }
        meaning
    }
}

/// Longer texts are known as they are.
const SHAPE_BYTES_MAX: usize = 4 << 10;

/// The text with its whole numbers and plain strings left out; `false` if it has anything by which they might not be what
/// they seem: comments, backslashes, quoted names, strings of other kinds, dollar quotes.
fn shape_of(text: &[u8], shape: &mut Vec<u8>) -> bool {
    shape.clear();
    if text.len() > SHAPE_BYTES_MAX {
        return false;
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | 0x80..);
    let (mut at, mut before) = (0, b' ');
    while let Some(&byte) = text.get(at) {
        let next = text.get(at + 1).copied().unwrap_or(b' ');
        match byte {
            b'0'..=b'9' if !word(before) => {
                at += text.get(at..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count();
                shape.push(b'0');
                before = b'0';
                continue;
            }
            b'\'' => {
                let rest = text.get(at + 1..).unwrap_or_default();
                let end = rest.iter().position(|b| matches!(b, b'\'' | b'\\'));
                let Some(length) = end.filter(|end| rest.get(*end) == Some(&b'\'')) else { return false };
                if word(before) || before == b'&' {
                    return false;
                }
                // a doubled quote is the end of one and the begin of another, which comes to the same
                shape.extend_from_slice(b"''");
                at += length + 2;
                before = b'\'';
                continue;
            }
            b'\\' | b'"' => return false,
            b'-' if next == b'-' => return false,
            b'/' if next == b'*' => return false,
            b'$' if !next.is_ascii_digit() => return false,
            _ => {}
        }
        shape.push(byte);
        before = byte;
        at += 1;
    }
    true
}

/// What leaves something in the session does not read, as the grammar has it: settings, locks and temporary tables are
/// made by statements, functions and relations that the catalog does not call reading.
fn judge(text: &[u8], catalog: &Catalog) -> Meaning {
    grammar::hinted(text).unwrap_or_else(|| grammar::meaning(text, catalog))
}

/// Whether the first series in `data` reads, and how long it is; `None` if not all of it is here.
pub(crate) fn series(session: &Session, data: &[u8], texts: &mut Texts, catalog: &Catalog) -> Option<(Meaning, usize)> {
    let (mut at, mut all, mut says_anything) = (0, Meaning::Read, false);
    let mut parsed: Option<&[u8]> = None;
    loop {
        let rest = data.get(at..)?;
        let Header { tag, len } = header(rest).ok()??;
        let whole = rest.get(..len)?;
        at += len;
        let mut body = message::body(whole);
        match tag {
            b'Q' => return Some((texts.meaning(body, catalog), at)),
            b'S' => return Some((if says_anything { all } else { Meaning::Unsure }, at)),
            b'P' => {
                let name = read_cstr(&mut body).ok()?;
                let (text, _) = message::take_cstr(body)?;
                all = all.min(texts.meaning(text, catalog));
                (says_anything, parsed) = (true, Some(name));
            }
            b'B' => {
                let _portal = read_cstr(&mut body).ok()?;
                let name = read_cstr(&mut body).ok()?;
                if parsed != Some(name) {
                    all = all.min(of_prepared(session, name, texts, catalog));
                }
                says_anything = true;
            }
            b'D' => {
                if let Some((b'S', mut name)) = body.split_first() {
                    let name = read_cstr(&mut name).ok()?;
                    if parsed != Some(name) {
                        all = all.min(of_prepared(session, name, texts, catalog));
                    }
                }
            }
            b'E' | b'C' | b'H' => {}
            _ => return Some((Meaning::Unsure, at)),
        }
    }
}

fn of_prepared(session: &Session, name: &[u8], texts: &mut Texts, catalog: &Catalog) -> Meaning {
    let statement = if name.is_empty() { session.unnamed.as_ref() } else { session.named.get(name) };
    let Some(statement) = statement else { return Meaning::Unsure };
    let (version, meaning) = statement.meaning.get();
    if version == catalog.version {
        return meaning;
    }
    let text = message::take_cstr(&statement.definition).map_or(&b""[..], |(text, _)| text);
    let meaning = texts.meaning(text, catalog);
    statement.meaning.set((catalog.version, meaning));
    meaning
}

/// How many bytes of `data` may go to the replica that a client has. Further series go there if they read; what does not
/// waits until all before it is answered, unless a transaction is open then.
pub(crate) fn for_replica(
    session: &Session,
    link: &Link,
    route: &mut Route,
    data: &[u8],
    texts: &mut Texts,
    catalog: &Catalog,
) -> usize {
    let mut owed = !link.expect.is_empty();
    let mut at = 0;
    if session.body_left > 0 || link.unsynced || link.copy_in {
        at = session.body_left.min(data.len());
        at += rest_of_series(data.get(at..).unwrap_or_default(), link.copy_in);
        owed = true;
    }
    while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
        let whole = rest_of_series(rest, false);
        let may = if owed {
            rest.first() == Some(&b'X')
                || series(session, rest, texts, catalog).is_some_and(|(meaning, _)| meaning.reads())
        } else {
            // pinned, it has nowhere else to go
            std::mem::take(&mut route.admitted) || link.status != b'I' || link.pinned
        };
        if !may {
            break;
        }
        at += whole;
        owed = true;
    }
    at
}

/// Whether `data` speaks of advisory locks: a replica gives them, and they keep nobody else from anything.
pub(crate) fn locks(data: &[u8]) -> bool {
    static WORD: LazyLock<memchr::memmem::Finder<'static>> = LazyLock::new(|| memchr::memmem::Finder::new("advisory"));
    WORD.find(data).is_some()
}

/// Up to the end of a series, or all.
fn rest_of_series(data: &[u8], copy_in: bool) -> usize {
    let mut at = 0;
    while let Some(Ok(Some(head))) = data.get(at..).map(header) {
        at += head.len;
        if matches!(head.tag, b'Q' | b'S' | b'F') && !copy_in {
            return at.min(data.len());
        }
    }
    data.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Option<String> {
        let mut shape = Vec::new();
        shape_of(text.as_bytes(), &mut shape).then(|| String::from_utf8(shape).unwrap())
    }

    #[test]
    fn values_are_left_out_and_nothing_else() {
        for (text, expected) in [
            ("SELECT a1 FROM t2 WHERE i = 42 AND s = 'it''s'", "SELECT a1 FROM t2 WHERE i = 0 AND s = ''''"),
            ("SELECT 1.5e10, x.1, $1, $12", "SELECT 0.0e10, x.0, $1, $12"),
            ("SELECT 'nextval(''s'')'", "SELECT ''''''"),
        ] {
            assert_eq!(shape(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "SELECT 1 -- 2",
            "/* millrace: primary */ SELECT 1",
            "SELECT 'a\\' || pay() || '",
            "SELECT E'a'",
            "SELECT U&'a'",
            "SELECT $$a$$",
            "SELECT \"1\"",
            "SELECT 'open",
        ] {
            assert_eq!(shape(text), None, "{text}");
        }
    }

    #[test]
    fn texts_that_come_again_are_known() {
        let mut texts = Texts::default();
        let catalog = |version| Catalog::new(version, ["count"], [("t", version == 1)]);
        for i in 0..5 {
            assert_eq!(texts.meaning(format!("SELECT {i} FROM t\0").as_bytes(), &catalog(1)), Meaning::Read);
            assert_eq!(texts.meaning(b"UPDATE t SET i = 1\0", &catalog(1)), Meaning::Unsure);
        }
        assert_eq!(texts.known.len(), 2);
        // by another catalog it means something else
        assert_eq!(texts.meaning(b"SELECT 9 FROM t\0", &catalog(2)), Meaning::Unsure);
        assert_eq!(texts.meaning(b"SELECT 9 FROM t\0", &catalog(1)), Meaning::Read);
        for i in 0..3 * TEXTS_MAX {
            for _ in 0..2 {
                texts.meaning(format!("SELECT c{i} FROM t").as_bytes(), &catalog(1));
            }
            assert!(texts.known.len() <= TEXTS_MAX && texts.bytes <= TEXT_BYTES_MAX);
        }
    }
}
