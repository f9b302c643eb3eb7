//! A simple query's text as its statements.
//!
//! Semicolons within strings, quoted names, dollar quotes and comments do not count (PostgreSQL manual, "Lexical
//! Structure"). Positions are found on bytes; all delimiters are ASCII, so a cut never falls within a character.

/// The statements of `sql`, trimmed, without empty ones.
pub(crate) fn statements(sql: &str) -> Vec<&str> {
    let bytes = sql.as_bytes();
    let mut statements = Vec::new();
    let (mut start, mut at, mut empty) = (0, 0, true);
    while let Some(byte) = bytes.get(at) {
        let next = match byte {
            b'\'' => {
                empty = false;
                let escapes = at > 0
                    && matches!(bytes.get(at - 1), Some(b'e' | b'E'))
                    && !(at > 1 && bytes.get(at - 2).is_some_and(|b| is_name(*b)));
                quoted(bytes, at, b'\'', escapes)
            }
            b'"' => {
                empty = false;
                quoted(bytes, at, b'"', false)
            }
            b'-' if bytes.get(at + 1) == Some(&b'-') => find(bytes, at, b"\n").map_or(bytes.len(), |end| end + 1),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment(bytes, at),
            b'$' if !(at > 0 && bytes.get(at - 1).is_some_and(|b| is_name(*b))) => {
                empty = false;
                dollar(bytes, at)
            }
            b';' => {
                if !empty {
                    statements.extend(sql.get(start..at).map(str::trim));
                }
                start = at + 1;
                empty = true;
                at + 1
            }
            other => {
                empty &= other.is_ascii_whitespace();
                at + 1
            }
        };
        at = next;
    }
    if !empty {
        statements.extend(sql.get(start..).map(str::trim));
    }
    statements
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn quoted(bytes: &[u8], start: usize, quote: u8, escapes: bool) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        if escapes && *byte == b'\\' {
            at += 1;
        } else if *byte == quote {
            if bytes.get(at) == Some(&quote) {
                at += 1;
            } else {
                return at;
            }
        }
    }
    bytes.len()
}

/// Comments nest.
fn comment(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => {
                depth += 1;
                at += 2;
            }
            Some(b"*/") => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

fn dollar(bytes: &[u8], start: usize) -> usize {
    let mut end = start + 1;
    while bytes.get(end).is_some_and(|b| is_name(*b)) {
        end += 1;
    }
    let is_tag = bytes.get(end) == Some(&b'$') && !bytes.get(start + 1).is_some_and(u8::is_ascii_digit);
    match bytes.get(start..=end) {
        Some(tag) if is_tag => find(bytes, end + 1, tag).map_or(bytes.len(), |found| found + tag.len()),
        _ => start + 1,
    }
}

fn find(bytes: &[u8], from: usize, wanted: &[u8]) -> Option<usize> {
    bytes.get(from..)?.windows(wanted.len()).position(|window| window == wanted).map(|found| from + found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn semicolons_that_count() {
        let cases: [(&str, &[&str]); 10] = [
            ("", &[]),
            (" ; ;; -- nothing", &[]),
            ("select 1", &["select 1"]),
            ("select 1; select 2;", &["select 1", "select 2"]),
            ("select ';' ; select \"a;b\"", &["select ';'", "select \"a;b\""]),
            ("select e'\\';' ; x", &["select e'\\';'", "x"]),
            ("select 'it''s;'", &["select 'it''s;'"]),
            ("/* a ; /* b ; */ */ select 1;", &["/* a ; /* b ; */ */ select 1"]),
            ("select $$a;b$$; select $t$ ; $$ $t$", &["select $$a;b$$", "select $t$ ; $$ $t$"]),
            ("select $1; select a$b", &["select $1", "select a$b"]),
        ];
        for (sql, expected) in cases {
            assert_eq!(statements(sql), expected, "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split(sql in "[;'\"$a-cé/*\\- \n\\\\eE]{0,40}") {
            for statement in statements(&sql) {
                prop_assert!(sql.contains(statement));
            }
        }
    }
}
