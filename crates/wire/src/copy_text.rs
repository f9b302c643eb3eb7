//! Rows of `COPY … TO STDOUT` in text format (PostgreSQL manual, COPY, "Text Format").
//!
//! Fields end with a tab, rows with a newline; `\N` is null; a backslash escapes. A row is unescaped
//! in its own buffer, so nothing is allocated.

use crate::cursor::DecodeError;

/// Where a field lies in the row's buffer after [`unescape_row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    start: usize,
    end: usize,
    null: bool,
}

impl Field {
    /// The field's text in the buffer that [`unescape_row`] was given; `None` for null.
    #[inline]
    #[must_use]
    pub fn of<'a>(&self, row: &'a [u8]) -> Option<&'a [u8]> {
        if self.null { None } else { row.get(self.start..self.end) }
    }
}

/// The fields of a row that has no backslash in it (so no null either), and its newline taken off.
/// The fast path: ask [`memchr`] first.
pub fn plain_fields(row: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(row);
    std::iter::from_fn(move || {
        let row = rest?;
        match memchr::memchr(b'\t', row) {
            Some(at) => {
                let (field, after) = row.split_at(at);
                rest = after.get(1..);
                Some(field)
            }
            None => rest.take(),
        }
    })
}

/// Splits a row, its newline taken off, into `fields` (emptied first) and takes the escapes out in place.
///
/// # Errors
/// If the row ends within an escape. The buffer's content is then undefined.
pub fn unescape_row(row: &mut [u8], fields: &mut Vec<Field>) -> Result<(), DecodeError> {
    fields.clear();
    // `read` never falls behind `write`: an escape is longer than what it stands for
    let (mut read, mut write) = (0, 0);
    loop {
        let start = write;
        if row.get(read..read + 2) == Some(b"\\N") && matches!(row.get(read + 2), None | Some(b'\t')) {
            read += 2;
            fields.push(Field { start, end: start, null: true });
        } else {
            (read, write) = unescape_field(row, read, write)?;
            fields.push(Field { start, end: write, null: false });
        }
        match row.get(read) {
            // the tab
            Some(_) => read += 1,
            None => return Ok(()),
        }
    }
}

/// Moves one field from `read` to `write`, up to the next tab or the end.
fn unescape_field(row: &mut [u8], mut read: usize, mut write: usize) -> Result<(usize, usize), DecodeError> {
    loop {
        let rest = row.get(read..).unwrap_or_default();
        let run = memchr::memchr2(b'\t', b'\\', rest).unwrap_or(rest.len());
        if read != write {
            row.copy_within(read..read + run, write);
        }
        read += run;
        write += run;
        match row.get(read) {
            Some(b'\\') => {}
            _ => return Ok((read, write)),
        }
        let (byte, len) = escape(row.get(read + 1..).unwrap_or_default())?;
        if let Some(place) = row.get_mut(write) {
            *place = byte;
        }
        write += 1;
        read += 1 + len;
    }
}

/// The byte that the escape after a backslash stands for, and the escape's length.
fn escape(rest: &[u8]) -> Result<(u8, usize), DecodeError> {
    let first = *rest.first().ok_or(DecodeError::DanglingEscape)?;
    Ok(match first {
        b'b' => (0x08, 1),
        b'f' => (0x0c, 1),
        b'n' => (b'\n', 1),
        b'r' => (b'\r', 1),
        b't' => (b'\t', 1),
        b'v' => (0x0b, 1),
        // the server does not send these two, but the format has them
        b'0'..=b'7' => {
            let digits = rest.iter().take(3).take_while(|b| matches!(b, b'0'..=b'7'));
            digits.fold((0u8, 0), |(value, len), b| (value.wrapping_mul(8).wrapping_add(b - b'0'), len + 1))
        }
        b'x' => {
            let digits = rest.iter().skip(1).take(2).map_while(|b| char::from(*b).to_digit(16));
            let (value, len) = digits
                .fold((0u8, 0), |(v, len), d| (v.wrapping_mul(16).wrapping_add(u8::try_from(d).unwrap_or(0)), len + 1));
            if len == 0 { (b'x', 1) } else { (value, 1 + len) }
        }
        other => (other, 1),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(row: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut row = row.to_vec();
        let mut fields = Vec::new();
        unescape_row(&mut row, &mut fields).unwrap();
        fields.iter().map(|f| f.of(&row).map(<[u8]>::to_vec)).collect()
    }

    /// As the server writes it (`CopyAttributeOutText`).
    fn encode(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, field) in fields.iter().enumerate() {
            if i > 0 {
                out.push(b'\t');
            }
            let Some(field) = field else {
                out.extend(b"\\N");
                continue;
            };
            for byte in field {
                match byte {
                    0x08 => out.extend(b"\\b"),
                    0x0c => out.extend(b"\\f"),
                    b'\n' => out.extend(b"\\n"),
                    b'\r' => out.extend(b"\\r"),
                    b'\t' => out.extend(b"\\t"),
                    0x0b => out.extend(b"\\v"),
                    b'\\' => out.extend(b"\\\\"),
                    other => out.push(*other),
                }
            }
        }
        out
    }

    #[test]
    fn examples() {
        let some = |s: &str| Some(s.as_bytes().to_vec());
        assert_eq!(decode(b"1\ttwo\t\\N"), [some("1"), some("two"), None]);
        assert_eq!(decode(b""), [some("")]);
        assert_eq!(decode(b"\t"), [some(""), some("")]);
        assert_eq!(decode(b"\\\\N\t\\\\"), [some("\\N"), some("\\")]);
        assert_eq!(decode(b"a\\tb\\nc\t\\x41\\101\\xg"), [some("a\tb\nc"), some("AAxg")]);
        // `\N` is null only as the whole field
        assert_eq!(decode(b"\\Nx"), [some("Nx")]);
        let mut fields = Vec::new();
        assert_eq!(unescape_row(&mut b"a\\".to_vec(), &mut fields), Err(DecodeError::DanglingEscape));
    }

    proptest! {
        #[test]
        fn round_trips(fields in proptest::collection::vec(
            proptest::option::of(proptest::collection::vec(
                prop_oneof![any::<u8>(), proptest::sample::select(b"\\N\t\n\r\x08".to_vec())], 0..12)), 1..8)) {
            let row = encode(&fields);
            prop_assert_eq!(decode(&row), fields.clone());
            if !row.contains(&b'\\') {
                let plain: Vec<_> = plain_fields(&row).map(|f| Some(f.to_vec())).collect();
                prop_assert_eq!(plain, fields);
            }
        }

        #[test]
        fn never_panics(mut row in proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(b"\\Nx0\t".to_vec())], 0..64)) {
            let mut fields = Vec::new();
            if unescape_row(&mut row, &mut fields).is_ok() {
                prop_assert!(fields.iter().all(|f| f.of(&row).is_none_or(|text| text.len() <= row.len())));
            }
            prop_assert!(plain_fields(&row).count() > 0);
        }
    }
}
