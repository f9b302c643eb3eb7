//! SQL identifiers and literals: the only way a name or a text gets into SQL as text.

use std::fmt;

/// Displays a name as a quoted SQL identifier: `"name"`, inner quotes doubled.
#[derive(Debug, Clone, Copy)]
pub struct Ident<'a>(pub &'a str);

impl fmt::Display for Ident<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// Displays a text as a standard SQL string literal: `'text'`, inner quotes doubled.
/// For places that take no bound parameter (DDL, replication commands) and with
/// `standard_conforming_strings` on. A text with a NUL byte cannot be expressed in PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub struct Literal<'a>(pub &'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(Ident(r#"a"b"#).to_string(), r#""a""b""#);
        assert_eq!(Literal("it's").to_string(), "'it''s'");
    }
}
