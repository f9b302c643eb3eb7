//! `:name` parameters in a statement, and their numbering as PostgreSQL wants it: `$1`, `$2`.
//!
//! Text within literals, quoted identifiers, comments and dollar quotes is left alone, and so are
//! `::casts`. A slice between names needs spaces: `a[i : j]`.

use std::ops::Range;

/// A `:name` in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    pub name: String,
    /// Bytes, the colon included.
    pub span: Range<usize>,
}

/// Every `:name` of a statement, in order; a name may come several times.
#[must_use]
pub fn placeholders(sql: &str) -> Vec<Placeholder> {
    let bytes = sql.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let mut found = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        i = match at(i) {
            b'\'' => end_of_quoted(bytes, i, is_escape_string(bytes, i)),
            b'"' => end_of_quoted(bytes, i, false),
            b'-' if at(i + 1) == b'-' => find(bytes, i, b"\n").unwrap_or(bytes.len()),
            b'/' if at(i + 1) == b'*' => end_of_comment(bytes, i),
            b'$' => end_of_dollar(bytes, i),
            b':' if at(i + 1) == b':' => i + 2,
            b':' if starts_name(at(i + 1)) => {
                let end = (i + 1..bytes.len()).find(|j| !in_name(at(*j))).unwrap_or(bytes.len());
                if let Some(name) = sql.get(i + 1..end) {
                    found.push(Placeholder { name: name.to_owned(), span: i..end });
                }
                end
            }
            _ => i + 1,
        };
    }
    found
}

/// The statement with each `:name` replaced by `$n`, `n` its place in `names` from 1; a name that
/// is not among them stays.
#[must_use]
pub fn number(sql: &str, names: &[&str]) -> String {
    let mut numbered = String::with_capacity(sql.len());
    let mut done = 0;
    for placeholder in placeholders(sql) {
        let Some(n) = names.iter().position(|n| *n == placeholder.name) else { continue };
        numbered.push_str(sql.get(done..placeholder.span.start).unwrap_or_default());
        numbered.push('$');
        numbered.push_str(&(n + 1).to_string());
        done = placeholder.span.end;
    }
    numbered.push_str(sql.get(done..).unwrap_or_default());
    numbered
}

fn starts_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Part of an identifier, so that what follows cannot begin a token of its own.
fn in_identifier(byte: u8) -> bool {
    in_name(byte) || byte == b'$' || !byte.is_ascii()
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    bytes.get(from..)?.windows(needle.len()).position(|w| w == needle).map(|at| from + at)
}

/// `E'…'`: a backslash escapes.
fn is_escape_string(bytes: &[u8], quote: usize) -> bool {
    let before = |n: usize| quote.checked_sub(n).and_then(|i| bytes.get(i)).copied();
    before(1).is_some_and(|b| b.eq_ignore_ascii_case(&b'e')) && !before(2).is_some_and(in_identifier)
}

/// After the closing quote; a doubled quote is none.
fn end_of_quoted(bytes: &[u8], start: usize, escapes: bool) -> usize {
    let quote = bytes.get(start).copied().unwrap_or(b'\'');
    let mut i = start + 1;
    while let Some(byte) = bytes.get(i) {
        match *byte {
            b'\\' if escapes => i += 2,
            b if b == quote && bytes.get(i + 1) == Some(&quote) => i += 2,
            b if b == quote => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// After the comment; comments nest.
fn end_of_comment(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut i) = (0usize, start);
    while i < bytes.len() {
        match bytes.get(i..i + 2) {
            Some(b"/*") => {
                depth += 1;
                i += 2;
            }
            Some(b"*/") => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    bytes.len()
}

/// After `$tag$…$tag$`; after the dollar alone if none begins here.
fn end_of_dollar(bytes: &[u8], start: usize) -> usize {
    let glued = start.checked_sub(1).and_then(|i| bytes.get(i)).is_some_and(|b| in_identifier(*b));
    let Some(close) = find(bytes, start + 1, b"$") else { return start + 1 };
    let Some(tag) = bytes.get(start..=close) else { return start + 1 };
    let inner = tag.get(1..tag.len() - 1).unwrap_or_default();
    let named = inner.iter().all(|b| in_name(*b) || !b.is_ascii()) && !inner.first().is_some_and(u8::is_ascii_digit);
    if glued || !named {
        return start + 1;
    }
    find(bytes, close + 1, tag).map_or(bytes.len(), |at| at + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sql: &str) -> Vec<String> {
        placeholders(sql).into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn parameters_are_found_between_other_colons() {
        let sql = "SELECT a::text, ':no', E'it\\':no', \"x:no\", $$ :no $$, $f$ :no $f$, 'it''s :no' -- :no\n\
                   /* :no /* :no */ :no */ FROM t WHERE d >= :from::date AND d < :to_day AND x[1:2] = y AND :from IS NULL";
        assert_eq!(names(sql), ["from", "to_day", "from"]);
        let numbered = number(sql, &["from", "to_day"]);
        assert!(numbered.ends_with("d >= $1::date AND d < $2 AND x[1:2] = y AND $1 IS NULL"), "{numbered}");
        assert!(numbered.starts_with("SELECT a::text, ':no', E'it\\':no'"));
    }

    #[test]
    fn what_is_not_closed_ends_with_the_text() {
        for sql in ["'", "\"", "/*", "$$", "$a$ :x", "--", "E'\\", ":", "::", "a$b$ ", "$", "é:x'"] {
            let found = names(sql);
            assert!(found.is_empty() || sql == "é:x'", "{sql}: {found:?}");
            assert_eq!(number(sql, &[]), sql);
        }
        assert_eq!(names("a$1 :x b$1"), ["x"]);
        assert_eq!(names("type'lit' :y"), ["y"]);
    }
}
