//! The head of a statement's file: `-- key: value` lines before the first line that is no comment.
//!
//! A line `--` with three spaces or more goes on with the value above. Other comments are prose.

use std::ops::Range;

use crate::diagnostic::{Source, suggest};

/// One `-- key: value`.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) key: &'a str,
    pub(super) value: String,
    /// Of the value in the first line; of the key where the value is empty.
    pub(super) span: Range<usize>,
}

/// The fields of a head, and the byte where the statement begins.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) fields: Vec<Field<'a>>,
    pub(super) body: usize,
}

/// Parses a head; unknown keys and keys given twice (unless in `many`) are recorded.
pub(super) fn parse<'a>(source: &Source<'a>, known: &[&str], many: &[&str]) -> Head<'a> {
    let mut fields: Vec<Field<'a>> = Vec::new();
    let mut at = 0;
    let mut body = source.text.len();
    for line in source.text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let Some(comment) = line.trim_end().strip_prefix("--") else {
            if line.trim().is_empty() {
                continue;
            }
            body = start;
            break;
        };
        if comment.starts_with("   ") {
            if let Some(last) = fields.last_mut() {
                last.value.push('\n');
                last.value.push_str(comment.trim());
            }
            continue;
        }
        let Some((key, value)) = comment.trim_start().split_once(':') else { continue };
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            continue;
        }
        let key_at = start + line.find(key).unwrap_or(0);
        if !known.contains(&key) {
            source.wrong(key_at..key_at + key.len(), format!("unknown key `{key}`"), suggest(key, "keys here", known));
            continue;
        }
        if !many.contains(&key) && fields.iter().any(|f| f.key == key) {
            source.wrong(key_at..key_at + key.len(), format!("`{key}` is given twice"), Some("keep one".to_owned()));
            continue;
        }
        let value_at = key_at + key.len() + 1 + (value.len() - value.trim_start().len());
        let value = value.trim();
        let span = if value.is_empty() { key_at..key_at + key.len() } else { value_at..value_at + value.len() };
        fields.push(Field { key, value: value.to_owned(), span });
    }
    Head { fields, body }
}

impl<'a> Head<'a> {
    pub(super) fn one(&self, key: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|f| f.key == key)
    }

    pub(super) fn all<'h>(&'h self, key: &'h str) -> impl Iterator<Item = &'h Field<'a>> {
        self.fields.iter().filter(move |f| f.key == key)
    }

    /// The value of a key that must be there.
    pub(super) fn required(&self, source: &Source<'_>, key: &str) -> String {
        match self.one(key) {
            Some(field) if !field.value.is_empty() => field.value.clone(),
            Some(field) => {
                source.wrong(field.span.clone(), format!("`{key}` is empty"), Some(format!("write -- {key}: …")));
                String::new()
            }
            None => {
                source.wrong(0..0, format!("the head lacks `{key}`"), Some(format!("add a line: -- {key}: …")));
                String::new()
            }
        }
    }
}
