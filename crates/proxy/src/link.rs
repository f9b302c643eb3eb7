//! What is known of one conversation with a server, and of the client that leads it, without their sockets.
//!
//! A [`Link`] knows which answers are still to come, so that what the proxy says itself (settings, questions of its
//! own, statements that a server already holds) fits in at its place. A [`Session`] is what a client keeps from one
//! server to the next.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use crate::{
    hint::Hint,
    settings::{SessionState, Settings},
    statements::{Definitions, Held, Statement},
};

/// When a server is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PoolMode {
    /// When the client leaves. Nothing is rewritten.
    Session,
    /// At the end of each transaction.
    #[default]
    Transaction,
    /// After each statement; transaction blocks are refused.
    Statement,
}

impl PoolMode {
    /// As configurations and consoles write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

/// An answer that the server owes, in order; or one that the proxy gives when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// A simple query or a function call: all up to ReadyForQuery.
    Query(Hint),
    /// ParseComplete for a statement of ours.
    Parse(u64),
    Bind,
    Describe,
    Execute(Hint),
    Close,
    /// ReadyForQuery.
    Sync,
    /// CopyDone or CopyFail has been sent: a mark, not an answer.
    CopyEnd,
    /// The server holds the statement: the proxy says ParseComplete.
    LocalParse(u64),
    /// A name of the client's is gone: the proxy says CloseComplete.
    LocalClose,
    /// ParseComplete or CloseComplete for something the proxy sent: not passed on.
    OwnParse(u64),
    OwnClose(u64),
    /// A query of the proxy's own: nothing up to ReadyForQuery is passed on.
    Own(Own),
}

impl Expect {
    /// With it, the client's statements have changed: a [`Change`] goes with it.
    #[inline]
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Parse(1..) | Self::LocalParse(_) | Self::LocalClose)
    }
}

/// What a client's statement was before a Parse or Close that the server has not answered yet: an error before it makes
/// the server skip it.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) name: Box<[u8]>,
    pub(crate) before: Option<Rc<Statement>>,
}

/// What the proxy asks a server on its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    /// Makes the server's settings the client's; the client's statements wait.
    Settings,
    /// Asks what the session keeps.
    Probe,
    /// Ends an open transaction, after its client has gone.
    Rollback,
    /// Forgets everything, after its client has gone.
    Reset,
    /// Forgets all prepared statements, since some are gone.
    Forget,
}

/// One server's side of the conversation.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) expect: VecDeque<Expect>,
    /// Of a message that comes in pieces, still to come; and whether it is passed on.
    pub(crate) body_left: usize,
    pub(crate) body_passes: bool,
    /// As in the last ReadyForQuery: `I`, `T` or `E`.
    pub(crate) status: u8,
    /// After an error within an extended query: the server ignores everything up to a Sync.
    pub(crate) skips_to_sync: bool,
    /// The client has begun an extended query that no Sync has ended: its work is not committed yet.
    pub(crate) unsynced: bool,
    /// Between CopyInResponse and the client's CopyDone: the server ignores Sync.
    pub(crate) copy_in: bool,
    pub(crate) held: Held,
    /// Of its database.
    pub(crate) definitions: Definitions,
    /// It lacks prepared statements that it should hold: somebody else has dropped them.
    pub(crate) stale: bool,
    /// Its transaction has changed a definition.
    pub(crate) redefines: bool,
    pub(crate) settings: Rc<Settings>,
    /// What [`Own::Settings`] is making of them.
    pub(crate) coming: Rc<Settings>,
    /// Its client has gone and left something: forget everything before the next.
    pub(crate) dirty: bool,
    /// An ErrorResponse was passed on since the last ReadyForQuery.
    pub(crate) error_passed: bool,
    /// The server has said that it ends the connection.
    pub(crate) ended: bool,
    /// Ask what the session keeps when the transaction is over.
    pub(crate) suspect: bool,
    /// The session keeps what cannot be moved: it stays with its client.
    pub(crate) pinned: bool,
    /// What the client sends next waits: a RESET may have undone what it asked for when it connected.
    pub(crate) reviewing: bool,
    /// Of the portal without a name.
    pub(crate) portal_hint: Hint,
    /// Gathers the answer to [`Own::Probe`].
    pub(crate) state: SessionState,
    /// What a query of our own failed with.
    pub(crate) own_error: Option<Box<str>>,
}

impl Link {
    /// A fresh connection that has just said ReadyForQuery.
    pub(crate) fn new(statements_max: usize, definitions: Definitions) -> Self {
        Self {
            expect: VecDeque::new(),
            body_left: 0,
            body_passes: false,
            status: b'I',
            skips_to_sync: false,
            unsynced: false,
            copy_in: false,
            held: Held::new(statements_max),
            definitions,
            stale: false,
            redefines: false,
            settings: Rc::default(),
            coming: Rc::default(),
            dirty: false,
            error_passed: false,
            ended: false,
            suspect: false,
            pinned: false,
            reviewing: false,
            portal_hint: Hint::default(),
            state: SessionState::default(),
            own_error: None,
        }
    }

    /// Nothing is owed and no transaction is open: the server could serve another client.
    #[inline]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.expect.is_empty() && self.status == b'I' && self.body_left == 0 && !self.waits_for_sync()
    }

    /// The transaction goes on until the client sends a Sync, whatever the last ReadyForQuery said.
    #[inline]
    pub(crate) fn waits_for_sync(&self) -> bool {
        self.unsynced || self.skips_to_sync
    }
}

/// What a client keeps from one server to the next.
#[derive(Debug)]
pub(crate) struct Session {
    /// Of a message that is passed on in pieces, still to come.
    pub(crate) body_left: usize,
    /// It was refused before a server had it: what follows up to its Sync comes to nothing.
    pub(crate) skips_to_sync: bool,
    /// Of a message that comes to nothing, still to come.
    pub(crate) skip_left: usize,
    pub(crate) named: HashMap<Box<[u8]>, Rc<Statement>>,
    pub(crate) unnamed: Option<Rc<Statement>>,
    /// For each answer that [`Expect::changes`], in order.
    pub(crate) changes: VecDeque<Change>,
    pub(crate) settings: Rc<Settings>,
    /// As the client asked for when it connected.
    pub(crate) startup: Rc<Settings>,
    /// Settings with a dot in their name that the client has spoken of.
    pub(crate) custom: Vec<Box<str>>,
}

impl Session {
    /// Makes `name` stand for a statement, or for none; what it stood for before.
    pub(crate) fn name(&mut self, name: &[u8], statement: Option<Rc<Statement>>) -> Option<Rc<Statement>> {
        match statement {
            statement if name.is_empty() => std::mem::replace(&mut self.unnamed, statement),
            Some(statement) => self.named.insert(name.into(), statement),
            None => self.named.remove(name),
        }
    }

    /// These changes, of which the last is the newest, did not come about.
    pub(crate) fn undo(&mut self, changes: impl DoubleEndedIterator<Item = Change>) {
        for change in changes.rev() {
            // what is still to come about has this to go back to
            match self.changes.iter_mut().find(|later| later.name == change.name) {
                Some(later) => later.before = change.before,
                None => drop(self.name(&change.name, change.before)),
            }
        }
    }

    pub(crate) fn new(startup: Rc<Settings>) -> Self {
        Self {
            body_left: 0,
            skips_to_sync: false,
            skip_left: 0,
            named: HashMap::new(),
            unnamed: None,
            changes: VecDeque::new(),
            settings: startup.clone(),
            custom: startup.names().filter(|name| name.contains('.')).map(Into::into).collect(),
            startup,
        }
    }
}
