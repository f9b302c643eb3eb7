//! The messages that the proxy itself makes or reads, beyond their headers.
//!
//! Invariant: no input panics. Non-goals: who sends them when.

use crate::frame::{HEADER_BYTES, Malformed};

/// How bad an error is, as the protocol says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The session goes on.
    Error,
    /// The session ends.
    Fatal,
}

/// Appends a message: its type, and a body written by `body`.
pub(crate) fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(at..at + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a text and its end.
pub(crate) fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// Appends an ErrorResponse.
pub(crate) fn error(out: &mut Vec<u8>, severity: Severity, code: &str, text: &str, hint: &str) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    message(out, b'E', |out| {
        for (field, value) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', text), (b'H', hint)] {
            if !value.is_empty() {
                out.push(field);
                cstr(out, value.as_bytes());
            }
        }
        out.push(0);
    });
}

/// Appends a NoticeResponse.
pub(crate) fn notice(out: &mut Vec<u8>, text: &str) {
    message(out, b'N', |out| {
        for (field, value) in [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', text)] {
            out.push(field);
            cstr(out, value.as_bytes());
        }
        out.push(0);
    });
}

/// Appends a ReadyForQuery.
pub(crate) fn ready(out: &mut Vec<u8>, status: u8) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// Appends a simple query.
pub(crate) fn query(out: &mut Vec<u8>, text: &str) {
    message(out, b'Q', |out| cstr(out, text.as_bytes()));
}

/// Appends a CommandComplete.
pub(crate) fn complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| cstr(out, tag.as_bytes()));
}

/// Appends a ParameterStatus.
pub(crate) fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        cstr(out, name.as_bytes());
        cstr(out, value.as_bytes());
    });
}

/// The text at the front of `bytes` up to its end, and what follows; `None` if the end is not there.
pub(crate) fn take_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == 0)?;
    let (text, rest) = bytes.split_at_checked(end)?;
    Some((text, rest.get(1..).unwrap_or_default()))
}

/// The text at the front, which must be there.
pub(crate) fn read_cstr<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let (text, rest) = take_cstr(bytes).ok_or(Malformed::Short)?;
    *bytes = rest;
    Ok(text)
}

/// A whole message without its header.
pub(crate) fn body(whole: &[u8]) -> &[u8] {
    whole.get(HEADER_BYTES..).unwrap_or_default()
}

/// One field of an ErrorResponse's body, such as `C`, the code.
pub(crate) fn error_field(mut body: &[u8], wanted: u8) -> Option<&str> {
    loop {
        let (&field, rest) = body.split_first()?;
        if field == 0 {
            return None;
        }
        let (value, rest) = take_cstr(rest)?;
        if field == wanted {
            return std::str::from_utf8(value).ok();
        }
        body = rest;
    }
}

/// The texts of a DataRow's body; `None` where a column is null, malformed or no text.
pub(crate) fn data_row(mut body: &[u8]) -> Vec<Option<&str>> {
    let mut columns = Vec::new();
    let Some((count, rest)) = body.split_first_chunk::<2>() else { return columns };
    body = rest;
    for _ in 0..u16::from_be_bytes(*count) {
        let Some((length, rest)) = body.split_first_chunk::<4>() else { break };
        body = rest;
        let column = usize::try_from(i32::from_be_bytes(*length)).ok().and_then(|length| body.split_at_checked(length));
        columns.push(column.and_then(|(value, _)| std::str::from_utf8(value).ok()));
        body = column.map_or(body, |(_, rest)| rest);
    }
    columns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::header;

    #[test]
    fn messages_have_their_length() {
        let mut out = Vec::new();
        error(&mut out, Severity::Fatal, "57P01", "gone", "");
        let first = header(&out).unwrap().unwrap();
        assert_eq!((first.tag, first.len), (b'E', out.len()));
        assert_eq!(error_field(body(&out), b'C'), Some("57P01"));
        assert_eq!(error_field(body(&out), b'H'), None);
        ready(&mut out, b'I');
        assert_eq!(header(&out[first.len..]).unwrap().unwrap().len, 6);
    }

    #[test]
    fn rows_are_read() {
        let mut row = vec![0, 2, 0, 0, 0, 1, b'a'];
        row.extend_from_slice(&(-1i32).to_be_bytes());
        assert_eq!(data_row(&row), [Some("a"), None]);
    }

    proptest! {
        #[test]
        fn nothing_panics(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _any = (error_field(&data, b'C'), data_row(&data), take_cstr(&data));
        }
    }
}
