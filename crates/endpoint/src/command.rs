//! Statements that are about the session and not about data: BEGIN, SET, SHOW and the like.
//!
//! They are recognised by their first words; all others go to the reader, which refuses what is not a query.

use std::{collections::BTreeMap, time::Duration};

use crate::error::Refusal;

/// A statement of the session itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, RELEASE, ROLLBACK TO: the tag.
    Savepoint(&'static str),
    Set {
        name: String,
        value: String,
    },
    Reset(Option<String>),
    Show(String),
    /// DISCARD ALL.
    Discard,
    /// `None` is ALL.
    Deallocate(Option<String>),
    /// DECLARE name … CURSOR FOR query.
    Declare {
        name: String,
        sql: String,
    },
    /// FETCH from a cursor; `None` is ALL.
    Fetch {
        name: String,
        rows: Option<usize>,
    },
    /// CLOSE a cursor; `None` is ALL.
    Close(Option<String>),
    /// Understood, without effect here: the tag.
    Nothing(&'static str),
}

/// The command that a statement is, if it is one.
///
/// # Errors
/// If it would make the session read-write, or cannot be understood.
pub(crate) fn parse(sql: &str) -> Result<Option<Command>, Refusal> {
    let words = words(sql);
    let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    let read_write = upper.windows(2).any(|pair| pair == ["READ", "WRITE"]);
    let command = match upper.as_slice() {
        ["BEGIN", ..] | ["START", "TRANSACTION", ..] => {
            if read_write {
                return Err(read_only("cannot start a read-write transaction"));
            }
            Command::Begin
        }
        ["COMMIT", "PREPARED", ..] | ["ROLLBACK", "PREPARED", ..] | ["PREPARE", "TRANSACTION", ..] => return Ok(None),
        ["COMMIT" | "END", ..] => Command::Commit,
        ["ROLLBACK", "TO", ..] | ["ROLLBACK", "WORK" | "TRANSACTION", "TO", ..] => Command::Savepoint("ROLLBACK"),
        ["ROLLBACK" | "ABORT", ..] => Command::Rollback,
        ["SAVEPOINT", ..] => Command::Savepoint("SAVEPOINT"),
        ["RELEASE", ..] => Command::Savepoint("RELEASE"),
        ["SET", rest @ ..] => return set(rest, words.get(1..).unwrap_or_default(), read_write).map(Some),
        ["RESET", "ALL"] => Command::Reset(None),
        ["RESET", ..] => Command::Reset(words.get(1).map(|name| name.to_lowercase())),
        ["SHOW", "TRANSACTION", "ISOLATION", "LEVEL"] => Command::Show("transaction_isolation".into()),
        ["SHOW", "TIME", "ZONE"] => Command::Show("timezone".into()),
        ["SHOW", name] => Command::Show(unquoted(name)),
        ["DISCARD", ..] => Command::Discard,
        ["DEALLOCATE", "ALL"] | ["DEALLOCATE", "PREPARE", "ALL"] => Command::Deallocate(None),
        ["DEALLOCATE", "PREPARE", _] => Command::Deallocate(words.get(2).map(|name| unquoted(name))),
        ["DEALLOCATE", _] => Command::Deallocate(words.get(1).map(|name| unquoted(name))),
        ["DECLARE", _, ..] => return declare(sql, &words, &upper).map(Some),
        ["FETCH" | "MOVE", rest @ ..] => return fetch(rest, &words).map(Some),
        ["CLOSE", "ALL"] => Command::Close(None),
        ["CLOSE", _] => Command::Close(words.get(1).map(|name| unquoted(name))),
        ["UNLISTEN", ..] => Command::Nothing("UNLISTEN"),
        ["LISTEN" | "NOTIFY", ..] => {
            return Err(Refusal::error("0A000", "notifications are not supported by the warehouse"));
        }
        ["COPY", ..] => {
            return Err(Refusal::error("0A000", "COPY is not supported by the warehouse")
                .hint("in psql, \\pset format csv and \\o write a query's result to a file"));
        }
        _ => return Ok(None),
    };
    Ok(Some(command))
}

fn read_only(message: &str) -> Refusal {
    Refusal::error("25006", format!("{message}: the warehouse is read-only"))
        .hint("change the data on the primary; it arrives here by itself")
}

fn set(upper: &[&str], words: &[String], read_write: bool) -> Result<Command, Refusal> {
    let skip = usize::from(matches!(upper, ["SESSION" | "LOCAL", second, ..] if *second != "=" && *second != "TO"));
    let (upper, words) = (upper.get(skip..).unwrap_or_default(), words.get(skip..).unwrap_or_default());
    match upper {
        ["TRANSACTION", ..] | ["CHARACTERISTICS", "AS", "TRANSACTION", ..] => {
            if read_write {
                return Err(read_only("cannot set transaction read-write mode"));
            }
            Ok(Command::Nothing("SET"))
        }
        ["CONSTRAINTS", ..] => Ok(Command::Nothing("SET CONSTRAINTS")),
        ["NAMES", ..] => value_of("client_encoding", words.get(1..)),
        ["TIME", "ZONE", ..] => value_of("timezone", words.get(2..)),
        ["ROLE" | "AUTHORIZATION", ..] => Err(Refusal::error("42501", "permission denied to set role")),
        [_, "TO" | "=", ..] => {
            let name = words.first().map(|name| unquoted(name)).unwrap_or_default();
            value_of(&name, words.get(2..))
        }
        _ => Err(Refusal::error("42601", "syntax error in SET")),
    }
}

fn value_of(name: &str, words: Option<&[String]>) -> Result<Command, Refusal> {
    let value: Vec<String> =
        words.unwrap_or_default().iter().filter(|word| *word != ",").map(|word| unquoted(word)).collect();
    if value.is_empty() {
        return Err(Refusal::error("42601", "syntax error in SET: a value is missing"));
    }
    Ok(Command::Set { name: name.to_lowercase(), value: value.join(", ") })
}

fn declare(sql: &str, words: &[String], upper: &[&str]) -> Result<Command, Refusal> {
    let bad = || Refusal::error("42601", "syntax error in DECLARE");
    let position = upper.iter().position(|word| *word == "FOR").ok_or_else(bad)?;
    if !upper.iter().take(position).any(|word| *word == "CURSOR") {
        return Err(bad());
    }
    // the query is what follows the first FOR after CURSOR, byte by byte
    let mut rest = sql;
    for word in words.iter().take(position + 1) {
        let at = rest.find(word.as_str()).ok_or_else(bad)?;
        rest = rest.get(at + word.len()..).ok_or_else(bad)?;
    }
    Ok(Command::Declare {
        name: words.get(1).map(|name| unquoted(name)).unwrap_or_default(),
        sql: rest.trim().to_owned(),
    })
}

fn fetch(upper: &[&str], words: &[String]) -> Result<Command, Refusal> {
    let name = words.last().map(|name| unquoted(name)).unwrap_or_default();
    let count: Vec<&&str> = upper
        .iter()
        .take(upper.len().saturating_sub(1))
        .filter(|word| !matches!(**word, "FROM" | "IN" | "FORWARD"))
        .collect();
    let rows = match count.as_slice() {
        [] => Some(1),
        [word] if **word == "NEXT" => Some(1),
        [word] if **word == "ALL" => None,
        [word] => Some(word.parse().map_err(|_| Refusal::error("55000", "cursor can only scan forward"))?),
        _ => return Err(Refusal::error("42601", "syntax error in FETCH")),
    };
    Ok(Command::Fetch { name, rows })
}

/// The words, strings and signs of a statement, without comments; enough for the commands above.
fn words(sql: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '-' if chars.peek() == Some(&'-') => {
                chars.by_ref().find(|c| *c == '\n');
            }
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                chars.by_ref().find(|c| {
                    let end = last == '*' && *c == '/';
                    last = *c;
                    end
                });
            }
            '\'' | '"' => {
                let mut word = String::from(c);
                while let Some(inside) = chars.next() {
                    word.push(inside);
                    if inside == c {
                        if chars.peek() == Some(&c) {
                            chars.next();
                            word.push(c);
                        } else {
                            break;
                        }
                    }
                }
                words.push(word);
            }
            c if c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+') => {
                let mut word = String::from(c);
                while let Some(more) =
                    chars.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+' | '$'))
                {
                    word.push(more);
                }
                words.push(word);
            }
            other => words.push(other.to_string()),
        }
    }
    words
}

fn unquoted(word: &str) -> String {
    for quote in ['\'', '"'] {
        if let Some(inside) = word.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inside.replace(&format!("{quote}{quote}"), &quote.to_string());
        }
    }
    word.to_lowercase()
}

/// A session's settings: what was reported at the start and what SET changed.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    values: BTreeMap<String, String>,
    /// Of a new session, for RESET.
    initial: BTreeMap<String, String>,
}

/// Settings that clients are told of when they change, with the spelling they know.
pub(crate) const REPORTED: [&str; 12] = [
    "server_version",
    "server_encoding",
    "client_encoding",
    "application_name",
    "is_superuser",
    "session_authorization",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "integer_datetimes",
    "standard_conforming_strings",
    "default_transaction_read_only",
];

impl Settings {
    pub(crate) fn new(user: &str, statement_timeout: Duration) -> Self {
        let version = format!("15.0 (Millrace {})", env!("CARGO_PKG_VERSION"));
        let timeout = format!("{}ms", statement_timeout.as_millis());
        let initial: BTreeMap<String, String> = [
            ("server_version", version.as_str()),
            ("server_version_num", "150000"),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("application_name", ""),
            ("is_superuser", "off"),
            ("session_authorization", user),
            ("datestyle", "ISO, MDY"),
            ("intervalstyle", "postgres"),
            ("timezone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("default_transaction_read_only", "on"),
            ("transaction_read_only", "on"),
            ("transaction_isolation", "repeatable read"),
            ("default_transaction_isolation", "repeatable read"),
            ("search_path", "warehouse"),
            ("statement_timeout", timeout.as_str()),
            ("max_identifier_length", "63"),
            ("bytea_output", "hex"),
            ("extra_float_digits", "1"),
            ("client_min_messages", "notice"),
            ("in_hot_standby", "off"),
            ("ssl", "on"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        Self { values: initial.clone(), initial }
    }

    /// # Errors
    /// If there is no such setting.
    pub(crate) fn get(&self, name: &str) -> Result<&str, Refusal> {
        self.values
            .get(&name.to_lowercase())
            .map(String::as_str)
            .ok_or_else(|| Refusal::error("42704", format!("unrecognized configuration parameter \"{name}\"")))
    }

    /// All settings in order of name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Changes a setting; the answer is a warning to pass on.
    ///
    /// # Errors
    /// If the setting cannot have this value here.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<Option<Refusal>, Refusal> {
        let name = name.to_lowercase();
        if value.eq_ignore_ascii_case("default") {
            self.reset(&name);
            return Ok(None);
        }
        // drivers quote within startup parameters too
        let value = value.trim_matches('\'');
        let lower = value.to_lowercase();
        let mut warning = None;
        match name.as_str() {
            "transaction_read_only" | "default_transaction_read_only"
                if matches!(lower.as_str(), "off" | "false" | "no" | "0") =>
            {
                return Err(read_only("cannot set transaction read-write mode"));
            }
            "client_encoding" if !matches!(lower.replace('-', "").as_str(), "utf8" | "unicode" | "sql_ascii") => {
                return Err(Refusal::error("22023", format!("conversion between {value} and UTF8 is not supported")));
            }
            "datestyle" if !lower.contains("iso") => {
                return Err(Refusal::error("22023", "the warehouse writes dates in ISO style only"));
            }
            "timezone" => {
                if !matches!(lower.as_str(), "utc" | "etc/utc" | "gmt" | "z" | "0" | "local") {
                    warning = Some(Refusal {
                        severity: "WARNING",
                        sqlstate: "01000",
                        message: format!("times are shown in UTC, not in {value}"),
                        hint: None,
                    });
                }
                return Ok(warning);
            }
            "statement_timeout" => {
                timeout(value)?;
            }
            "server_version" | "server_encoding" | "integer_datetimes" | "is_superuser" | "server_version_num" => {
                return Err(Refusal::error("55P02", format!("parameter \"{name}\" cannot be changed")));
            }
            "client_encoding" => {
                self.values.insert(name, "UTF8".to_owned());
                return Ok(None);
            }
            _ => {}
        }
        self.values.insert(name, value.to_owned());
        Ok(warning)
    }

    pub(crate) fn reset(&mut self, name: &str) {
        match self.initial.get(name) {
            Some(value) => self.values.insert(name.to_owned(), value.clone()),
            None => self.values.remove(name),
        };
    }

    pub(crate) fn reset_all(&mut self) {
        self.values.clone_from(&self.initial);
    }

    /// The value of the moment becomes the one that RESET goes back to (startup parameters).
    pub(crate) fn keep(&mut self) {
        self.initial.clone_from(&self.values);
    }

    /// `None` is no timeout of the session's own.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.values.get("statement_timeout").and_then(|value| timeout(value).ok()).filter(|t| !t.is_zero())
    }
}

/// PostgreSQL's notation of times: a number of milliseconds, or with a unit.
fn timeout(value: &str) -> Result<Duration, Refusal> {
    let bad = || Refusal::error("22023", format!("invalid value for parameter \"statement_timeout\": \"{value}\""));
    let value = value.trim();
    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let factor = match value.get(digits.len()..).unwrap_or_default().trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    Ok(Duration::from_millis(number.checked_mul(factor).ok_or_else(bad)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let set = |name: &str, value: &str| Some(Command::Set { name: name.into(), value: value.into() });
        let cases = [
            ("begin read only", Some(Command::Begin)),
            ("/* x */ START TRANSACTION ISOLATION LEVEL SERIALIZABLE", Some(Command::Begin)),
            ("end", Some(Command::Commit)),
            ("rollback to savepoint a", Some(Command::Savepoint("ROLLBACK"))),
            ("set client_encoding to 'UTF8'", set("client_encoding", "UTF8")),
            ("SET SESSION statement_timeout = 5000", set("statement_timeout", "5000")),
            ("set search_path = a, b", set("search_path", "a, b")),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Some(Command::Nothing("SET"))),
            ("set time zone 'UTC'", set("timezone", "UTC")),
            ("show transaction isolation level", Some(Command::Show("transaction_isolation".into()))),
            ("SELECT 1", None),
            ("fetch forward 10 from \"C\"", Some(Command::Fetch { name: "C".into(), rows: Some(10) })),
            (
                "declare c no scroll cursor for select 1 for x",
                Some(Command::Declare { name: "c".into(), sql: "select 1 for x".into() }),
            ),
        ];
        for (sql, expected) in cases {
            assert_eq!(parse(sql), Ok(expected), "{sql}");
        }
        assert_eq!(parse("begin read write").unwrap_err().sqlstate, "25006");
        assert_eq!(parse("copy t to stdout").unwrap_err().sqlstate, "0A000");
    }

    #[test]
    fn settings() {
        let mut settings = Settings::new("me", Duration::from_secs(60));
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(60)));
        settings.set("statement_timeout", "2s").unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(2)));
        assert!(settings.set("timezone", "Europe/Berlin").unwrap().is_some());
        assert_eq!(settings.set("transaction_read_only", "off").unwrap_err().sqlstate, "25006");
        assert_eq!(settings.get("nosuch").unwrap_err().sqlstate, "42704");
        settings.reset_all();
        assert_eq!(settings.get("statement_timeout"), Ok("60000ms"));
    }
}
