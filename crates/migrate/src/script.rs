//! The statements of a script: where each begins and what it is. For messages and for the check of
//! what may not be part of a migration; the server itself gets the script as it is.
//!
//! Follows the lexical rules of the PostgreSQL manual, "Lexical Structure", with the standard
//! strings that every supported server uses by default.

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Of its first word, from 1.
    pub(crate) line: usize,
    /// Its words outside of literals, in capitals; as many as tell statements apart.
    words: Vec<String>,
}

/// Words kept of each statement: `COPY t (a, b, …) FROM STDIN` is told by a late one.
const WORDS_MAX: usize = 200;

impl Statement {
    /// What it is, if it would end the migrator's transaction or wait for data from the client.
    pub(crate) fn forbidden(&self) -> Option<&'static str> {
        let word = |i: usize| self.words.get(i).map_or("", String::as_str);
        match (word(0), word(1)) {
            ("BEGIN", _) => Some("BEGIN"),
            ("START", "TRANSACTION") => Some("START TRANSACTION"),
            ("COMMIT", _) => Some("COMMIT"),
            ("END", _) => Some("END"),
            ("ABORT", _) => Some("ABORT"),
            ("PREPARE", "TRANSACTION") => Some("PREPARE TRANSACTION"),
            ("ROLLBACK", _) if !self.words.iter().any(|w| w == "TO") => Some("ROLLBACK"),
            ("COPY", _) if self.words.iter().any(|w| w == "STDIN" || w == "STDOUT") => {
                Some("COPY from or to the client")
            }
            _ => None,
        }
    }

    /// `CREATE [OR REPLACE] FUNCTION | PROCEDURE`: its body may be statements of their own.
    fn is_routine(&self) -> bool {
        let mut words = self.words.iter().map(String::as_str);
        words.next() == Some("CREATE")
            && words.find(|w| !matches!(*w, "OR" | "REPLACE")).is_some_and(|w| matches!(w, "FUNCTION" | "PROCEDURE"))
    }
}

/// All statements, in order. Comments and empty ones do not count.
pub(crate) fn statements(sql: &str) -> Vec<Statement> {
    let bytes = sql.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let mut found = Vec::new();
    let mut open: Option<Statement> = None;
    let (mut i, mut line) = (0, 1);
    let (mut parentheses, mut blocks) = (0usize, 0usize);
    while i < bytes.len() {
        let start = i;
        let mut word = None;
        i = match at(i) {
            b'-' if at(i + 1) == b'-' => end_of_line(bytes, i),
            b'/' if at(i + 1) == b'*' => end_of_comment(bytes, i),
            b';' if parentheses == 0 && blocks == 0 => {
                found.extend(open.take());
                i + 1
            }
            b if b.is_ascii_whitespace() => i + 1,
            token => {
                let (end, is_word) = end_of_token(bytes, i, token);
                if is_word {
                    word = sql.get(i..end).map(str::to_ascii_uppercase);
                }
                let statement = open.get_or_insert_with(|| Statement { line, words: Vec::new() });
                match token {
                    b'(' => parentheses += 1,
                    b')' => parentheses = parentheses.saturating_sub(1),
                    _ => {}
                }
                if let Some(word) = word {
                    // a body in the SQL standard's form: BEGIN ATOMIC … ; … END
                    match word.as_str() {
                        "BEGIN" if statement.is_routine() => blocks += 1,
                        "CASE" if blocks > 0 => blocks += 1,
                        "END" if blocks > 0 => blocks -= 1,
                        _ => {}
                    }
                    if statement.words.len() < WORDS_MAX {
                        statement.words.push(word);
                    }
                }
                end
            }
        };
        line += bytes.get(start..i).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
    }
    found.extend(open);
    found
}

/// The end of a token that is neither space nor comment, and whether it is a word.
fn end_of_token(bytes: &[u8], start: usize, first: u8) -> (usize, bool) {
    match first {
        b'\'' => (end_of_quoted(bytes, start, escapes(bytes, start)), false),
        b'"' => (end_of_quoted(bytes, start, false), false),
        b'$' => (end_of_dollar(bytes, start), false),
        b if in_word(b) => {
            let end = (start..bytes.len())
                .find(|j| !bytes.get(*j).is_some_and(|b| in_word(*b) || *b == b'$'))
                .unwrap_or(bytes.len());
            (end, !b.is_ascii_digit())
        }
        _ => (start + 1, false),
    }
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    bytes.get(from..)?.windows(needle.len()).position(|w| w == needle).map(|at| from + at)
}

fn end_of_line(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, b"\n").unwrap_or(bytes.len())
}

/// `E'…'`: a backslash escapes.
fn escapes(bytes: &[u8], quote: usize) -> bool {
    let before = |n: usize| quote.checked_sub(n).and_then(|i| bytes.get(i)).copied();
    before(1).is_some_and(|b| b.eq_ignore_ascii_case(&b'e')) && !before(2).is_some_and(|b| in_word(b) || b == b'$')
}

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

/// Comments nest.
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

/// After `$tag$…$tag$`; after the dollar alone if none begins here (`$1`).
fn end_of_dollar(bytes: &[u8], start: usize) -> usize {
    let Some(close) = find(bytes, start + 1, b"$") else { return start + 1 };
    let Some(tag) = bytes.get(start..=close) else { return start + 1 };
    let inner = tag.get(1..tag.len() - 1).unwrap_or_default();
    if !inner.iter().all(|b| in_word(*b)) || inner.first().is_some_and(u8::is_ascii_digit) {
        return start + 1;
    }
    find(bytes, close + 1, tag).map_or(bytes.len(), |at| at + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(sql: &str) -> Vec<usize> {
        statements(sql).iter().map(|s| s.line).collect()
    }

    #[test]
    fn statements_end_at_their_own_semicolons() {
        let sql = "-- a; b\nSELECT ';', E'\\';', \"a;b\";\n\n/* ; /* ; */ ; */ DO $$ BEGIN\n; END $$;;\n\
                   CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);\nSELECT $1, $x$;$x$\n;\n-- end;";
        assert_eq!(lines(sql), [2, 4, 6, 7]);
    }

    #[test]
    fn bodies_in_standard_form_are_part_of_their_statement() {
        let sql = "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC\nSELECT CASE WHEN true THEN 1 END;\nSELECT 2;\nEND;\nSELECT 3";
        assert_eq!(lines(sql), [1, 5]);
        assert_eq!(lines("CREATE TABLE begin_end (a int);\nSELECT 1 AS begin; SELECT 2"), [1, 2, 2]);
    }

    #[test]
    fn what_is_not_closed_ends_with_the_script() {
        for sql in ["'", "\"", "/*", "$$", "$a$ x", "(;", "E'\\", "$"] {
            assert!(statements(sql).len() <= 1, "{sql}");
        }
        assert!(statements("-- nothing\n/* here */ ;").is_empty());
    }

    #[test]
    fn transaction_control_is_seen() {
        for (sql, what) in [
            ("commit", Some("COMMIT")),
            ("Begin Work", Some("BEGIN")),
            ("rollback", Some("ROLLBACK")),
            ("ROLLBACK TO SAVEPOINT a", None),
            ("SAVEPOINT a", None),
            ("COPY t FROM STDIN", Some("COPY from or to the client")),
            ("COPY t FROM '/stdin'", None),
            ("PREPARE p AS SELECT 1", None),
            ("SELECT 'commit'", None),
        ] {
            let found = statements(sql);
            assert_eq!(found.first().and_then(Statement::forbidden), what, "{sql}");
        }
    }
}
