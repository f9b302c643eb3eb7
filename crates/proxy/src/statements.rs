//! Prepared statements that outlive the server connection they were made on.
//!
//! A client's statement, named or not, is known here by its text and parameter types; on servers it has a name of ours,
//! the same for every client that sent the same text. A server is asked to parse only what it does not hold yet.
//! Invariants: a name of ours never stands for two texts, not even after eviction; memory is bounded by [`BYTES_MAX`] and
//! by what clients hold; what a client parses after a definition of its database has changed ([`Definitions`]) is parsed
//! by the server. Pure: no I/O.

use std::{
    cell::Cell,
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    grammar::Meaning,
    hint::{Hint, TextHint},
};

/// What names of ours begin with.
pub(crate) const PREFIX: &[u8] = b"millrace_";
/// Statements that no client holds are forgotten beyond this, and beyond [`BYTES_MAX`] of text.
const COUNT_MAX: usize = 4_096;
const BYTES_MAX: usize = 16 << 20;

/// Names are never used twice in a process, so that a connection may change its worker.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Counts the times that definitions of one database changed: what was parsed before may no longer fit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Definitions(Arc<AtomicU64>);

impl Definitions {
    /// A table or its like is no longer what it was. Texts parsed from now on get new names, so that servers parse them
    /// anew; what clients hold keeps its name, and the server says whether it can still be used.
    pub(crate) fn outdate(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    fn changes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One text that clients prepared.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) id: u64,
    /// Its name on servers.
    pub(crate) name: Box<[u8]>,
    /// What follows the name in a Parse: the text, its end, and the parameter types.
    pub(crate) definition: Rc<[u8]>,
    pub(crate) hint: Hint,
    /// What it means, with the version of the catalog by which it was judged.
    pub(crate) meaning: Cell<(u64, Meaning)>,
    /// Settings that it names and a server does not list.
    pub(crate) custom: Box<[Box<str>]>,
}

/// All texts of one worker's clients of one database.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    by_definition: HashMap<Rc<[u8]>, Rc<Statement>>,
    bytes: usize,
    definitions: Definitions,
    /// How many changes of definitions came before these.
    changes: u64,
}

impl Statements {
    /// None yet, of the database whose definitions these are.
    pub(crate) fn new(definitions: Definitions) -> Self {
        Self { definitions, ..Self::default() }
    }

    /// The statement with this definition; `hint` is asked for when it is new.
    pub(crate) fn intern(&mut self, definition: &[u8], hint: impl FnOnce() -> TextHint) -> Rc<Statement> {
        self.renew(self.definitions.changes());
        if let Some(known) = self.by_definition.get(definition) {
            return known.clone();
        }
        if self.by_definition.len() >= COUNT_MAX || self.bytes + definition.len() > BYTES_MAX {
            self.forget();
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = [PREFIX, id.to_string().as_bytes()].concat().into_boxed_slice();
        let TextHint { hint, custom } = hint();
        let definition: Rc<[u8]> = definition.into();
        let statement = Rc::new(Statement {
            id,
            name,
            definition,
            hint,
            meaning: Cell::new((0, Meaning::Unsure)),
            custom: custom.into(),
        });
        self.bytes += statement.definition.len();
        self.by_definition.insert(statement.definition.clone(), statement.clone());
        statement
    }

    /// Names none of what was parsed before the last change.
    fn renew(&mut self, changes: u64) {
        if self.changes != changes {
            self.changes = changes;
            self.by_definition.clear();
            self.bytes = 0;
        }
    }

    /// Forgets what no client holds.
    fn forget(&mut self) {
        self.by_definition.retain(|_, statement| Rc::strong_count(statement) > 1);
        self.bytes = self.by_definition.keys().map(|definition| definition.len()).sum();
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_definition.len()
    }
}

/// Which statements one server holds, and since when they were last used.
#[derive(Debug)]
pub(crate) struct Held {
    used: HashMap<u64, u64>,
    clock: u64,
    max: usize,
}

/// What must be sent before a statement can be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Needed {
    Nothing,
    /// It must be parsed; and before that, the statement with this id closed.
    Parse {
        evict: Option<u64>,
    },
}

impl Held {
    pub(crate) fn new(max: usize) -> Self {
        Self { used: HashMap::new(), clock: 0, max: max.max(1) }
    }

    /// Notes that `id` is used now; afterwards the server holds it.
    pub(crate) fn use_(&mut self, id: u64) -> Needed {
        self.clock += 1;
        if let Some(used) = self.used.get_mut(&id) {
            *used = self.clock;
            return Needed::Nothing;
        }
        let full = self.used.len() >= self.max;
        let evict = if full { self.used.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id) } else { None };
        if let Some(oldest) = evict {
            self.used.remove(&oldest);
        }
        self.used.insert(id, self.clock);
        Needed::Parse { evict }
    }

    /// The server has it, although it was to be closed.
    pub(crate) fn keep(&mut self, id: u64) {
        self.used.insert(id, 0);
    }

    /// The server did not take it after all.
    pub(crate) fn remove(&mut self, id: u64) {
        self.used.remove(&id);
    }

    pub(crate) fn clear(&mut self) {
        self.used.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_name() {
        let mut statements = Statements::default();
        let one = statements.intern(b"SELECT 1\0\0\0", TextHint::default);
        let again = statements.intern(b"SELECT 1\0\0\0", || unreachable!());
        let other = statements.intern(b"SELECT 2\0\0\0", TextHint::default);
        assert!(Rc::ptr_eq(&one, &again));
        assert_ne!(one.name, other.name);
    }

    #[test]
    fn memory_is_bounded_and_names_are_not_used_again() {
        let mut statements = Statements::default();
        let kept = statements.intern(b"kept\0", TextHint::default);
        let lost = statements.intern(b"lost\0", TextHint::default).id;
        for i in 0..3 * COUNT_MAX {
            statements.intern(format!("{i}\0").as_bytes(), TextHint::default);
            assert!(statements.len() <= COUNT_MAX);
        }
        assert!(Rc::ptr_eq(&kept, &statements.intern(b"kept\0", || unreachable!())));
        assert_ne!(statements.intern(b"lost\0", TextHint::default).id, lost);
    }

    #[test]
    fn after_a_change_texts_have_new_names() {
        let definitions = Definitions::default();
        let (mut statements, mut elsewhere) = (Statements::new(definitions.clone()), Statements::default());
        let before = statements.intern(b"SELECT 1\0\0\0", TextHint::default);
        let other = elsewhere.intern(b"SELECT 1\0\0\0", TextHint::default);
        definitions.outdate();
        assert_ne!(statements.intern(b"SELECT 1\0\0\0", TextHint::default).name, before.name);
        assert_eq!((statements.len(), statements.bytes), (1, 11));
        // in another database nothing has changed
        assert!(Rc::ptr_eq(&elsewhere.intern(b"SELECT 1\0\0\0", || unreachable!()), &other));
    }

    #[test]
    fn the_least_recently_used_is_closed() {
        let mut held = Held::new(2);
        assert_eq!(held.use_(1), Needed::Parse { evict: None });
        assert_eq!(held.use_(2), Needed::Parse { evict: None });
        assert_eq!(held.use_(1), Needed::Nothing);
        assert_eq!(held.use_(3), Needed::Parse { evict: Some(2) });
        assert_eq!(held.use_(2), Needed::Parse { evict: Some(1) });
        held.remove(2);
        assert_eq!(held.use_(2), Needed::Parse { evict: None });
    }
}
