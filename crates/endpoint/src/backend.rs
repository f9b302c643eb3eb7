//! Messages to clients: types into bytes (PostgreSQL manual, "Message Formats").

use bytes::{BufMut, BytesMut};

use crate::error::Refusal;

/// A column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) oid: u32,
    /// Bytes of the binary form; -1 when it varies.
    pub(crate) size: i16,
    pub(crate) modifier: i32,
}

/// Writes one message: `body` fills what comes after the length.
fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = i32::try_from(out.len() - start).unwrap_or(i32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// A string and its final zero; a zero within would end it early and is left out.
fn put_text(out: &mut BytesMut, text: &str) {
    if text.contains('\0') {
        out.put_slice(text.replace('\0', "").as_bytes());
    } else {
        out.put_slice(text.as_bytes());
    }
    out.put_u8(0);
}

pub(crate) fn authentication(out: &mut BytesMut, code: i32, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_i32(code);
        out.put_slice(data);
    });
}

pub(crate) fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |out| {
        put_text(out, name);
        put_text(out, value);
    });
}

pub(crate) fn backend_key(out: &mut BytesMut, pid: i32, key: i32) {
    message(out, b'K', |out| {
        out.put_i32(pid);
        out.put_i32(key);
    });
}

/// The client asked for a newer minor version of the protocol, or for options that are not known.
pub(crate) fn negotiate_version(out: &mut BytesMut, unknown: &[&str]) {
    message(out, b'v', |out| {
        // the minor version that is spoken: 3.0
        out.put_i32(0);
        out.put_i32(i32::try_from(unknown.len()).unwrap_or(0));
        for name in unknown {
            put_text(out, name);
        }
    });
}

pub(crate) fn ready(out: &mut BytesMut, status: u8) {
    message(out, b'Z', |out| out.put_u8(status));
}

pub(crate) fn refusal(out: &mut BytesMut, refusal: &Refusal) {
    fields(out, b'E', refusal);
}

pub(crate) fn notice(out: &mut BytesMut, notice: &Refusal) {
    fields(out, b'N', notice);
}

fn fields(out: &mut BytesMut, kind: u8, refusal: &Refusal) {
    message(out, kind, |out| {
        for (field, text) in [
            (b'S', Some(refusal.severity)),
            (b'V', Some(refusal.severity)),
            (b'C', Some(refusal.sqlstate)),
            (b'M', Some(refusal.message.as_str())),
            (b'H', refusal.hint.as_deref()),
        ] {
            if let Some(text) = text {
                out.put_u8(field);
                put_text(out, text);
            }
        }
        out.put_u8(0);
    });
}

pub(crate) fn row_description(out: &mut BytesMut, fields: &[Field], formats: &[i16]) {
    message(out, b'T', |out| {
        out.put_i16(i16::try_from(fields.len()).unwrap_or(i16::MAX));
        for (index, field) in fields.iter().enumerate() {
            put_text(out, &field.name);
            out.put_i32(0);
            out.put_i16(0);
            out.put_u32(field.oid);
            out.put_i16(field.size);
            out.put_i32(field.modifier);
            out.put_i16(format_of(formats, index));
        }
    });
}

/// The format of a value: one code stands for all, none for text.
pub(crate) fn format_of(formats: &[i16], index: usize) -> i16 {
    match formats {
        [] => 0,
        [one] => *one,
        many => many.get(index).copied().unwrap_or(0),
    }
}

/// A row; `value` appends the value at an index, or returns false for null.
pub(crate) fn data_row<E>(
    out: &mut BytesMut,
    columns: usize,
    mut value: impl FnMut(usize, &mut BytesMut) -> Result<bool, E>,
) -> Result<(), E> {
    let start = out.len();
    let mut failed = None;
    message(out, b'D', |out| {
        out.put_i16(i16::try_from(columns).unwrap_or(i16::MAX));
        for index in 0..columns {
            let place = out.len();
            out.put_i32(-1);
            match value(index, out) {
                Ok(false) => {}
                Ok(true) => {
                    let length = i32::try_from(out.len() - place - 4).unwrap_or(i32::MAX);
                    if let Some(bytes) = out.get_mut(place..place + 4) {
                        bytes.copy_from_slice(&length.to_be_bytes());
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    return;
                }
            }
        }
    });
    match failed {
        None => Ok(()),
        Some(error) => {
            // half a row must not be sent
            out.truncate(start);
            Err(error)
        }
    }
}

pub(crate) fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| put_text(out, tag));
}

pub(crate) fn parameter_description(out: &mut BytesMut, oids: &[u32]) {
    message(out, b't', |out| {
        out.put_i16(i16::try_from(oids.len()).unwrap_or(i16::MAX));
        for oid in oids {
            out.put_u32(*oid);
        }
    });
}

/// Messages without a body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plain {
    ParseComplete,
    BindComplete,
    CloseComplete,
    NoData,
    EmptyQuery,
    PortalSuspended,
}

pub(crate) fn plain(out: &mut BytesMut, kind: Plain) {
    let byte = match kind {
        Plain::ParseComplete => b'1',
        Plain::BindComplete => b'2',
        Plain::CloseComplete => b'3',
        Plain::NoData => b'n',
        Plain::EmptyQuery => b'I',
        Plain::PortalSuspended => b's',
    };
    message(out, byte, |_| {});
}
