//! What a statement's text says about the session beyond its transaction, by a look for a few words.
//!
//! A word found only means that the server is asked afterwards ([`crate::settings::probe`]), so a false alarm costs
//! a round trip and nothing else; for the one that is a usual name, `temp`, the grammar is asked before. What statements do at their own level is told more exactly by their command tags
//! ([`of_tag`]); the text is for functions, `TEMP` and `SET LOCAL`. What a function does inside is not seen.
//! Pure: no I/O.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use crate::grammar;

/// What is known of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hint {
    /// The session may keep something: ask after the transaction.
    pub(crate) suspect: bool,
    /// All that it sets ends with the transaction: its SET is no reason to ask.
    pub(crate) local_set: bool,
    /// Its command tag is to read `DEALLOCATE`: the proxy itself has carried it out.
    pub(crate) deallocated: bool,
}

/// What a command tag says about the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagHint {
    /// Nothing.
    None,
    /// A setting may have changed.
    Set,
    /// The session may keep something, or has given something up.
    Suspect,
    /// The session's prepared statements are gone.
    Deallocated,
    /// A table or its like has changed: prepared statements may no longer fit.
    Definition,
}

static WORDS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .build(["set_config", "advisory_lock", "advisory_unlock", "temp", "; set", "with hold"])
        .ok()
});

/// What a text says, with the settings it names that a server does not list.
#[derive(Debug, Default)]
pub(crate) struct TextHint {
    pub(crate) hint: Hint,
    pub(crate) custom: Vec<Box<str>>,
}

impl TextHint {
    pub(crate) fn new(hint: Hint) -> Self {
        Self { hint, custom: Vec::new() }
    }
}

/// Looks at a statement, or several separated by semicolons. Allocates only where settings with a dot are named.
pub(crate) fn of_text(text: &[u8]) -> TextHint {
    let first = words(text);
    let mut hint = Hint { local_set: is_local_set(&first), ..Hint::default() };
    let Some(finder) = WORDS.as_ref() else { return TextHint::new(Hint { suspect: true, ..hint }) };
    let mut may_set = first[0].eq_ignore_ascii_case(b"set");
    let mut temporary = false;
    for found in finder.find_iter(text) {
        let after = text.get(found.end()..).unwrap_or_default();
        match found.pattern().as_usize() {
            0 => {
                may_set = true;
                hint.suspect |= !ends_local(after);
            }
            3 => temporary |= is_temporary(after),
            4 => {
                hint.local_set = false;
                may_set = true;
            }
            _ => hint.suspect = true,
        }
    }
    hint.suspect |= temporary && !hint.suspect && !grammar::makes_nothing(text);
    let custom = if may_set { custom_settings(text) } else { Vec::new() };
    TextHint { hint, custom }
}

/// `SET LOCAL`, `SET TRANSACTION` or `SET CONSTRAINTS`, alone in its text.
fn is_local_set(first: &[&[u8]; 2]) -> bool {
    let [set, kind] = first;
    set.eq_ignore_ascii_case(b"set")
        && [&b"local"[..], b"transaction", b"constraints"].iter().any(|word| kind.eq_ignore_ascii_case(word))
}

/// The first two words.
fn words(text: &[u8]) -> [&[u8]; 2] {
    let mut words = text.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
    [words.next().unwrap_or_default(), words.next().unwrap_or_default()]
}

/// Whether the arguments of `set_config` end with `true`: it lasts for the transaction.
fn ends_local(after: &[u8]) -> bool {
    let arguments = after.split(|b| *b == b')').next().unwrap_or_default().trim_ascii_end();
    arguments.len() >= 4 && arguments.get(arguments.len() - 4..).is_some_and(|last| last.eq_ignore_ascii_case(b"true"))
}

/// `TEMP t`, `TEMPORARY`, `pg_temp.t`, not `temperature`.
fn is_temporary(after: &[u8]) -> bool {
    let ordinary = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let after = match after.split_at_checked(5) {
        Some((word, rest)) if word.eq_ignore_ascii_case(b"orary") => rest,
        _ => after,
    };
    !after.first().is_some_and(ordinary)
}

/// Settings with a dot in their name, which `pg_settings` does not list: `SET app.user = …`, `set_config('app.user', …)`.
fn custom_settings(text: &[u8]) -> Vec<Box<str>> {
    let Ok(text) = std::str::from_utf8(text) else { return Vec::new() };
    let lower = text.trim_end_matches('\0').to_ascii_lowercase();
    let mut found = Vec::new();
    let named = |rest: &str| -> Option<Box<str>> {
        let rest = rest.trim_start_matches([' ', '\t', '\r', '\n', '(', '\'', '"']);
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '$'))).unwrap_or(rest.len());
        rest.get(..end).filter(|name| name.contains('.') && name.len() < 128).map(Into::into)
    };
    for statement in lower.split(';') {
        let statement = statement.trim_start();
        if let Some(rest) = statement.strip_prefix("set ") {
            found.extend(named(rest.trim_start().strip_prefix("session ").unwrap_or(rest)));
        }
    }
    found.extend(lower.split("set_config").skip(1).filter_map(named));
    found
}

/// The name in `DEALLOCATE [PREPARE] name`, alone in its text; not `ALL`.
pub(crate) fn deallocated_name(text: &[u8]) -> Option<String> {
    let text = text.trim_ascii_start();
    let (word, _) = text.split_at_checked(10)?;
    if !word.eq_ignore_ascii_case(b"deallocate") {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0').trim_end().trim_end_matches(';').trim_end();
    let rest = text.get(10..)?;
    if !rest.starts_with([' ', '\t', '\n']) {
        return None;
    }
    let mut name = rest.trim();
    if let Some((word, rest)) = name.split_once([' ', '\t', '\n']) {
        if !word.eq_ignore_ascii_case("prepare") {
            return None;
        }
        name = rest.trim();
    }
    if let Some(quoted) = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        return Some(quoted.replace("\"\"", "\""));
    }
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$');
    (plain && !name.eq_ignore_ascii_case("all")).then(|| name.to_lowercase())
}

/// What the body of a CommandComplete says.
#[inline]
pub(crate) fn of_tag(tag: &[u8]) -> TagHint {
    // the common ones first: SELECT, INSERT, UPDATE, BEGIN, COMMIT, ROLLBACK
    match tag {
        [b'S', b'E', b'L', ..] | [b'I' | b'U', b'N' | b'P', b'S' | b'D', ..] | [b'B', ..] | [b'C', b'O', ..] => {
            TagHint::None
        }
        [b'S', b'E', b'T', 0] | [b'R', b'E', b'S', b'E', b'T', 0] => TagHint::Set,
        _ if tag.starts_with(b"DEALLOCATE ALL") || tag.starts_with(b"DISCARD ALL") => TagHint::Deallocated,
        _ if starts_with_any(tag, &[b"ALTER ", b"DROP ", b"CREATE VIEW", b"CREATE RULE"]) => {
            let (_, what) = tag.split_at(tag.iter().position(|b| *b == b' ').map_or(0, |at| at + 1));
            if starts_with_any(what, &NOT_IN_STATEMENTS) { TagHint::None } else { TagHint::Definition }
        }
        _ if starts_with_any(
            tag,
            &[b"LISTEN", b"UNLISTEN", b"PREPARE\0", b"DEALLOCATE", b"DISCARD", b"DO\0", b"CLOSE"],
        ) =>
        {
            TagHint::Suspect
        }
        _ => TagHint::None,
    }
}

/// What no prepared statement is made of: others need not be parsed anew when these change.
const NOT_IN_STATEMENTS: [&[u8]; 12] = [
    b"ROLE",
    b"OWNED",
    b"DATABASE",
    b"SYSTEM",
    b"TABLESPACE",
    b"INDEX",
    b"STATISTICS",
    b"TRIGGER",
    b"EVENT TRIGGER",
    b"DEFAULT PRIVILEGES",
    b"PUBLICATION",
    b"SUBSCRIPTION",
];

fn starts_with_any(tag: &[u8], starts: &[&[u8]]) -> bool {
    starts.iter().any(|start| tag.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, suspect) in [
            ("SELECT abalance FROM pgbench_accounts WHERE aid = 1", false),
            ("select SET_CONFIG('a.b', 'c', false)", true),
            ("select set_config('a.b', 'c', TRUE )", false),
            ("CREATE TEMP TABLE t()", true),
            ("create temporary table t()", true),
            ("SELECT 1 INTO pg_temp.t", true),
            ("SELECT temperature, template, attempt FROM temperatures", false),
            ("CREATE TEMPORARY", true),
            ("SELECT temp FROM readings WHERE temp > $1 ORDER BY readings.temp", false),
            ("SELECT temp, make_temp() FROM readings", true),
            ("SELECT * FROM pg_temp.t", true),
            ("SELECT temp INTO TEMP t FROM readings", true),
            ("SELECT temp FROM readings; CREATE TEMP TABLE t ()", true),
            ("SELECT temp, set_config('a.b', 'c', false) FROM readings", true),
            ("INSERT INTO readings (temp) VALUES (1)", true),
            ("SELECT pg_advisory_lock(1)", true),
            ("SELECT pg_advisory_xact_lock(1)", false),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", true),
        ] {
            assert_eq!(of_text(text.as_bytes()).hint.suspect, suspect, "{text}");
        }
        assert!(of_text(b"SET LOCAL work_mem = 1").hint.local_set);
        assert!(of_text(b"set transaction read only").hint.local_set);
        assert!(!of_text(b"SET work_mem = 1").hint.local_set);
    }

    #[test]
    fn names_of_settings() {
        assert_eq!(
            custom_settings(b"SET app.user = 'x'; set session a.b to 1; SET work_mem = 1"),
            ["app.user".into(), "a.b".into()]
        );
        assert_eq!(custom_settings(b"SELECT set_config( 'App.Tenant', $1, false)"), ["app.tenant".into()]);
        assert!(custom_settings(b"SELECT set_config($1, $2, false)").is_empty());
    }

    #[test]
    fn deallocations() {
        for (text, name) in [
            ("DEALLOCATE _pg3_0", Some("_pg3_0")),
            ("deallocate PREPARE \"Mixed \"\"x\";", Some("Mixed \"x")),
            ("DEALLOCATE ALL", None),
            ("DEALLOCATE a; DROP TABLE b", None),
            ("SELECT 1", None),
        ] {
            assert_eq!(deallocated_name(text.as_bytes()).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn tags() {
        for (tag, hint) in [
            (&b"SELECT 1\0"[..], TagHint::None),
            (b"SET\0", TagHint::Set),
            (b"SET CONSTRAINTS\0", TagHint::None),
            (b"RESET\0", TagHint::Set),
            (b"DISCARD ALL\0", TagHint::Deallocated),
            (b"DISCARD TEMP\0", TagHint::Suspect),
            (b"PREPARE\0", TagHint::Suspect),
            (b"PREPARE TRANSACTION\0", TagHint::None),
            (b"ALTER TABLE\0", TagHint::Definition),
            (b"DROP MATERIALIZED VIEW\0", TagHint::Definition),
            (b"ALTER ROLE\0", TagHint::None),
            (b"DROP INDEX\0", TagHint::None),
            (b"ALTER DEFAULT PRIVILEGES\0", TagHint::None),
            (b"", TagHint::None),
        ] {
            assert_eq!(of_tag(tag), hint, "{}", String::from_utf8_lossy(tag));
        }
    }
}
