//! Messages of the `pgoutput` plugin, protocol versions 1 and 2
//! (PostgreSQL manual, "Logical Replication Message Formats").
//!
//! Within a streamed transaction (between [`Message::StreamStart`] and [`Message::StreamStop`])
//! most messages carry the id of the (sub)transaction that made the change; the caller says
//! whether it stands within one, because the bytes do not.

use millrace_base::{Lsn, Micros};

use crate::cursor::{Cursor, DecodeError};

/// A message and, within a streamed transaction, the (sub)transaction it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decoded<'a> {
    pub xid: Option<u32>,
    pub message: Message<'a>,
}

/// One message of the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Message<'a> {
    Begin {
        /// Position of the commit record.
        final_lsn: Lsn,
        commit_time: Micros,
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        /// Where the commit record ends: the stream resumes here.
        end_lsn: Lsn,
        commit_time: Micros,
    },
    Origin {
        commit_lsn: Lsn,
        name: &'a str,
    },
    Relation(Relation<'a>),
    Type {
        oid: u32,
        schema: &'a str,
        name: &'a str,
    },
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<OldTuple<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: OldTuple<'a>,
    },
    Truncate {
        relations: RelationIds<'a>,
        cascade: bool,
        restart_identity: bool,
    },
    /// From `pg_logical_emit_message`.
    Logical {
        transactional: bool,
        lsn: Lsn,
        prefix: &'a str,
        content: &'a [u8],
    },
    StreamStart {
        xid: u32,
        first_segment: bool,
    },
    StreamStop,
    StreamCommit {
        xid: u32,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: Micros,
    },
    /// `subxid` equals `xid` when the whole transaction is aborted.
    StreamAbort {
        xid: u32,
        subxid: u32,
    },
}

/// What the server keeps of old rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    Nothing,
    Full,
    Index,
}

/// A table as rows of it follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relation<'a> {
    pub oid: u32,
    pub schema: &'a str,
    pub name: &'a str,
    pub identity: ReplicaIdentity,
    count: u16,
    columns: &'a [u8],
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity; with a full one every column is.
    pub key: bool,
    pub name: &'a str,
    pub type_oid: u32,
    /// `atttypmod`; -1 without one.
    pub typmod: i32,
}

impl<'a> Relation<'a> {
    /// The columns in order.
    pub fn columns(&self) -> impl Iterator<Item = RelationColumn<'a>> {
        let mut cursor = Cursor::new(self.columns);
        // decoded once before, so `ok` never drops a column
        (0..self.count).map_while(move |_| relation_column(&mut cursor).ok())
    }

    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Which values of the old row came along.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OldTuple<'a> {
    /// The replica identity's columns; all others are null.
    Key(Tuple<'a>),
    /// The whole row (full replica identity).
    Row(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    #[must_use]
    pub fn tuple(&self) -> Tuple<'a> {
        match *self {
            Self::Key(tuple) | Self::Row(tuple) => tuple,
        }
    }
}

/// A row's values, in the order of the relation's columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuple<'a> {
    count: u16,
    values: &'a [u8],
}

/// One value of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// A TOASTed value that the update did not touch and the stream leaves out.
    Unchanged,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's send format (only if asked for).
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// The values in order.
    #[inline]
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + Clone {
        let mut cursor = Cursor::new(self.values);
        (0..self.count).map_while(move |_| value(&mut cursor).ok())
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The oids of truncated relations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelationIds<'a>(&'a [u8]);

impl RelationIds<'_> {
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut cursor = Cursor::new(self.0);
        std::iter::from_fn(move || cursor.u32("relation").ok())
    }
}

/// Decodes one message. `in_stream`: it came between [`Message::StreamStart`] and [`Message::StreamStop`].
///
/// # Errors
/// If the bytes are not one whole message.
pub fn decode(bytes: &[u8], in_stream: bool) -> Result<Decoded<'_>, DecodeError> {
    let mut cursor = Cursor::new(bytes);
    let kind = cursor.u8("message type")?;
    let carries_xid = matches!(kind, b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M');
    let xid = if in_stream && carries_xid { Some(cursor.u32("transaction id")?) } else { None };
    let message = match kind {
        b'I' => Message::Insert { relation: cursor.u32("relation")?, new: new_tuple(&mut cursor)? },
        b'U' => update(&mut cursor)?,
        b'D' => {
            let relation = cursor.u32("relation")?;
            let kind = cursor.u8("tuple kind")?;
            let old =
                old_tuple(kind, &mut cursor)?.ok_or(DecodeError::Unexpected { what: "tuple kind", value: kind })?;
            Message::Delete { relation, old }
        }
        b'B' => Message::Begin {
            final_lsn: cursor.lsn("final position")?,
            commit_time: cursor.time("commit time")?,
            xid: cursor.u32("transaction id")?,
        },
        b'C' => {
            cursor.u8("flags")?;
            Message::Commit {
                commit_lsn: cursor.lsn("commit position")?,
                end_lsn: cursor.lsn("end position")?,
                commit_time: cursor.time("commit time")?,
            }
        }
        b'R' => Message::Relation(relation(&mut cursor)?),
        b'Y' => {
            Message::Type { oid: cursor.u32("type")?, schema: cursor.text("schema")?, name: cursor.text("type name")? }
        }
        b'T' => truncate(&mut cursor)?,
        b'O' => Message::Origin { commit_lsn: cursor.lsn("commit position")?, name: cursor.text("origin")? },
        b'M' => {
            let transactional = cursor.u8("flags")? & 1 != 0;
            let lsn = cursor.lsn("position")?;
            let prefix = cursor.text("prefix")?;
            let len = cursor.len("content length")?;
            Message::Logical { transactional, lsn, prefix, content: cursor.bytes(len, "content")? }
        }
        b'S' => {
            Message::StreamStart { xid: cursor.u32("transaction id")?, first_segment: cursor.u8("segment flag")? != 0 }
        }
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = cursor.u32("transaction id")?;
            cursor.u8("flags")?;
            Message::StreamCommit {
                xid,
                commit_lsn: cursor.lsn("commit position")?,
                end_lsn: cursor.lsn("end position")?,
                commit_time: cursor.time("commit time")?,
            }
        }
        b'A' => Message::StreamAbort { xid: cursor.u32("transaction id")?, subxid: cursor.u32("subtransaction id")? },
        other => return Err(DecodeError::UnknownMessage(other)),
    };
    cursor.finish()?;
    Ok(Decoded { xid, message })
}

fn update<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = cursor.u32("relation")?;
    let kind = cursor.u8("tuple kind")?;
    let old = old_tuple(kind, cursor)?;
    let new = match (old, kind) {
        (Some(_), _) => new_tuple(cursor)?,
        (None, b'N') => tuple(cursor)?,
        (None, value) => return Err(DecodeError::Unexpected { what: "tuple kind", value }),
    };
    Ok(Message::Update { relation, old, new })
}

fn truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let count = cursor.len("number of relations")?;
    let options = cursor.u8("options")?;
    let len = count.checked_mul(4).ok_or(DecodeError::Short("relations"))?;
    Ok(Message::Truncate {
        relations: RelationIds(cursor.bytes(len, "relations")?),
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
    })
}

fn relation<'a>(cursor: &mut Cursor<'a>) -> Result<Relation<'a>, DecodeError> {
    let oid = cursor.u32("relation")?;
    let schema = match cursor.text("schema")? {
        // the protocol's short form
        "" => "pg_catalog",
        schema => schema,
    };
    let name = cursor.text("relation name")?;
    let identity = match cursor.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        value => return Err(DecodeError::Unexpected { what: "replica identity", value }),
    };
    let count = cursor.u16("number of columns")?;
    let columns = cursor.rest();
    for _ in 0..count {
        relation_column(cursor)?;
    }
    Ok(Relation { oid, schema, name, identity, count, columns })
}

fn relation_column<'a>(cursor: &mut Cursor<'a>) -> Result<RelationColumn<'a>, DecodeError> {
    Ok(RelationColumn {
        key: cursor.u8("column flags")? & 1 != 0,
        name: cursor.text("column name")?,
        type_oid: cursor.u32("column type")?,
        typmod: cursor.i32("column type modifier")?,
    })
}

fn old_tuple<'a>(kind: u8, cursor: &mut Cursor<'a>) -> Result<Option<OldTuple<'a>>, DecodeError> {
    Ok(match kind {
        b'K' => Some(OldTuple::Key(tuple(cursor)?)),
        b'O' => Some(OldTuple::Row(tuple(cursor)?)),
        _ => None,
    })
}

#[inline]
fn new_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    match cursor.u8("tuple kind")? {
        b'N' => tuple(cursor),
        value => Err(DecodeError::Unexpected { what: "tuple kind", value }),
    }
}

#[inline]
fn tuple<'a>(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
    let count = cursor.u16("number of values")?;
    let values = cursor.rest();
    for _ in 0..count {
        value(cursor)?;
    }
    Ok(Tuple { count, values })
}

#[inline]
fn value<'a>(cursor: &mut Cursor<'a>) -> Result<Value<'a>, DecodeError> {
    Ok(match cursor.u8("value kind")? {
        b't' => {
            let len = cursor.len("value length")?;
            Value::Text(cursor.bytes(len, "value")?)
        }
        b'n' => Value::Null,
        b'u' => Value::Unchanged,
        b'b' => {
            let len = cursor.len("value length")?;
            Value::Binary(cursor.bytes(len, "value")?)
        }
        value => return Err(DecodeError::Unexpected { what: "value kind", value }),
    })
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;
