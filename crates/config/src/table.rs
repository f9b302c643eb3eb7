//! Strict reading of a TOML table: every key known, every value of its type, every mistake placed.
//!
//! A getter records what is wrong and returns `None`, so that the reading goes on and all mistakes
//! of a file are told at once. A caller must therefore ask the [`Source`] before it trusts a value.

use std::{net::IpAddr, ops::Range, path::PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    diagnostic::{Source, suggest},
    schema::{Absent, Table},
    units,
};

/// What is wrong with a value.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// A value and where it stands; a default stands nowhere (`None`).
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Option<Range<usize>>,
}

/// One table being read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    source: &'a Source<'a>,
    schema: &'static Table,
    table: Option<&'a DeTable<'a>>,
    span: Range<usize>,
}

/// Parses a document; what is malformed is recorded.
pub(crate) fn parse_document<'a>(source: &Source<'a>) -> Spanned<DeTable<'a>> {
    let (document, errors) = DeTable::parse_recoverable(source.text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let hint = error.message().contains("must be quoted").then(|| "put a text in quotes: \"text\"".to_owned());
        source.wrong(span, format!("not valid TOML: {}", error.message()), hint);
    }
    source.stop_here();
    document
}

impl<'a> Reader<'a> {
    /// Reads `table`, or defaults alone where it is `None`; unknown keys are recorded.
    pub(crate) fn new(
        source: &'a Source<'a>,
        schema: &'static Table,
        table: Option<&'a DeTable<'a>>,
        span: Range<usize>,
    ) -> Self {
        let names: Vec<&str> = schema.keys.iter().map(|k| k.name).collect();
        for key in table.into_iter().flat_map(DeTable::keys) {
            if !names.contains(&key.get_ref().as_ref()) {
                let word = key.get_ref();
                source.wrong(
                    key.span(),
                    format!("unknown key `{word}` in {}", schema.header),
                    suggest(word, "keys here", &names),
                );
            }
        }
        Self { source, schema, table, span }
    }

    fn entry(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table?.get(name)
    }

    /// The value of a key after `convert`; its default if absent.
    pub(crate) fn read<T>(
        &self,
        name: &'static str,
        convert: impl Fn(&DeValue<'_>) -> Result<T, Problem>,
    ) -> Option<At<T>> {
        if let Some(value) = self.entry(name) {
            return match convert(value.get_ref()) {
                Ok(converted) => Some(At { value: converted, span: Some(value.span()) }),
                Err(problem) => {
                    self.source.wrong(value.span(), format!("`{name}`: {}", problem.message), problem.hint);
                    None
                }
            };
        }
        let key = self.schema.keys.iter().find(|k| k.name == name)?;
        match key.absent {
            Absent::Required => {
                self.source.wrong(
                    self.span.clone(),
                    format!("{} lacks the key `{name}`", self.schema.header),
                    Some(format!("`{name}`: {}", key.about)),
                );
                None
            }
            Absent::Nothing => None,
            Absent::Default(text) => {
                let value = DeValue::parse(text).ok()?;
                Some(At { value: convert(value.get_ref()).ok()?, span: None })
            }
        }
    }

    /// A text, not empty unless that is the default.
    pub(crate) fn text(&self, name: &'static str) -> String {
        self.read(name, text).map(|t| t.value).unwrap_or_default()
    }

    /// A text of a key without a default.
    pub(crate) fn text_maybe(&self, name: &'static str) -> Option<String> {
        self.read(name, text).map(|t| t.value)
    }

    /// A name made of lowercase letters, digits, `_` and the characters of `extra`.
    pub(crate) fn name(&self, name: &'static str, length_max: usize, extra: &'static str) -> String {
        self.read(name, |v| identifier(text(v)?, length_max, extra)).map(|t| t.value).unwrap_or_default()
    }

    pub(crate) fn boolean(&self, name: &'static str) -> bool {
        self.read(name, |v| match v {
            DeValue::Boolean(b) => Ok(*b),
            other => Err(Problem::new(
                format!("must be true or false, found {}", kind(other)),
                "write true or false, without quotes",
            )),
        })
        .is_some_and(|b| b.value)
    }

    /// A whole number within `range`.
    pub(crate) fn integer(&self, name: &'static str, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.read(name, |v| integer(v, &range)).map_or(*range.start(), |i| i.value)
    }

    /// A whole number within `range` of a key without a default.
    pub(crate) fn integer_maybe(&self, name: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        self.read(name, |v| integer(v, &range)).map(|i| i.value)
    }

    /// Bytes within `range`.
    pub(crate) fn size(&self, name: &'static str, range: std::ops::RangeInclusive<u64>) -> u64 {
        let least = *range.start();
        self.size_maybe(name, range).unwrap_or(least)
    }

    /// As [`Reader::size`], where there need not be one.
    pub(crate) fn size_maybe(&self, name: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let convert = |v: &DeValue<'_>| {
            let written = match v {
                DeValue::String(s) => s.as_ref(),
                other => {
                    return Err(Problem::new(
                        format!("must be a size, found {}", kind(other)),
                        "write a size with its unit in quotes: \"64MiB\"",
                    ));
                }
            };
            let bytes = units::parse_size(written).map_err(|bad| Problem::new(bad.message, bad.hint))?;
            if range.contains(&bytes) {
                return Ok(bytes);
            }
            let (least, most) = (units::format_size(*range.start()), units::format_size(*range.end()));
            let hint =
                if *range.end() == u64::MAX { format!("at least {least}") } else { format!("{least} to {most}") };
            Err(Problem::new(format!("{written} is out of range"), hint))
        };
        self.read(name, convert).map(|b| b.value)
    }

    /// A port that an unprivileged program may listen on.
    pub(crate) fn port(&self, name: &'static str) -> Option<At<u16>> {
        self.read(name, |v| {
            let port = integer(v, &(1024..=65535))?;
            u16::try_from(port).map_err(|_| Problem::new("out of range", "1024 to 65535"))
        })
    }

    pub(crate) fn address(&self, name: &'static str) -> Option<IpAddr> {
        self.read(name, |v| {
            let written = text(v)?;
            if written == "localhost" {
                return Err(Problem::new("must be an address, not a name", "write 127.0.0.1"));
            }
            written.parse().map_err(|_| {
                Problem::new(
                    format!("`{written}` is not an IP address"),
                    "write 127.0.0.1 for this machine only, 0.0.0.0 for every network",
                )
            })
        })
        .map(|a| a.value)
    }

    pub(crate) fn path(&self, name: &'static str) -> Option<At<PathBuf>> {
        self.read(name, |v| Ok(PathBuf::from(text(v)?)))
    }

    /// A table within this one, read with its own schema; defaults alone if it is absent.
    pub(crate) fn table(&self, name: &'static str, schema: &'static Table) -> Reader<'a> {
        match self.entry(name).map(|v| (v.get_ref(), v.span())) {
            Some((DeValue::Table(table), span)) => Reader::new(self.source, schema, Some(table), span),
            Some((other, span)) => {
                self.source.wrong(
                    span.clone(),
                    format!("`{name}`: must be a table, found {}", kind(other)),
                    Some(format!("begin a table with {}", schema.header)),
                );
                Reader::new(self.source, schema, None, span)
            }
            None => {
                let required = schema.keys.iter().any(|k| k.absent == Absent::Required) && self.is_required(name);
                if required {
                    self.source.wrong(
                        self.span.clone(),
                        format!("{} lacks the table {}", self.schema.header, schema.header),
                        Some(format!("add {}", schema.header)),
                    );
                }
                Reader { source: self.source, schema, table: None, span: self.span.clone() }
            }
        }
    }

    fn is_required(&self, name: &str) -> bool {
        self.schema.keys.iter().any(|k| k.name == name && k.absent == Absent::Required)
    }

    /// Whether the table is written in the file.
    pub(crate) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// The tables of an array; `None` if the key is absent or of another type.
    pub(crate) fn tables(&self, name: &'static str, schema: &'static Table) -> Option<Vec<Reader<'a>>> {
        let Some(value) = self.entry(name) else {
            if self.is_required(name) {
                self.source.wrong(
                    self.span.clone(),
                    format!("{} lacks {}", self.schema.header, schema.header),
                    Some(format!("add {}", schema.header)),
                );
            }
            return None;
        };
        let wrong = |span, found: &DeValue<'_>| {
            self.source.wrong(
                span,
                format!("`{name}`: must be an array of tables, found {}", kind(found)),
                Some(format!("write it as {}", schema.header)),
            );
        };
        let DeValue::Array(array) = value.get_ref() else {
            wrong(value.span(), value.get_ref());
            return None;
        };
        let mut readers = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::Table(table) => readers.push(Reader::new(self.source, schema, Some(table), item.span())),
                other => wrong(item.span(), other),
            }
        }
        Some(readers)
    }

    /// Every key and value of a table whose keys are free, such as `[roles]`.
    pub(crate) fn free_table(&self, name: &'static str) -> Vec<(&'a str, Range<usize>, &'a Spanned<DeValue<'a>>)> {
        match self.entry(name).map(|v| (v.get_ref(), v.span())) {
            Some((DeValue::Table(table), _)) => {
                table.iter().map(|(k, v)| (k.get_ref().as_ref(), k.span(), v)).collect()
            }
            Some((other, span)) => {
                self.source.wrong(span, format!("`{name}`: must be a table, found {}", kind(other)), None);
                Vec::new()
            }
            None => {
                if self.is_required(name) {
                    self.source.wrong(
                        self.span.clone(),
                        format!("{} lacks the table `{name}`", self.schema.header),
                        None,
                    );
                }
                Vec::new()
            }
        }
    }

    pub(crate) fn texts(&self, name: &'static str) -> Vec<String> {
        self.read(name, |v| match v {
            DeValue::Array(items) => items.iter().map(|item| text(item.get_ref())).collect(),
            other => Err(Problem::new(
                format!("must be an array of texts, found {}", kind(other)),
                "write [\"one\", \"two\"]",
            )),
        })
        .map(|t| t.value)
        .unwrap_or_default()
    }

    /// Records a mistake at a value read before, or at the table where it was a default.
    pub(crate) fn wrong(&self, span: Option<Range<usize>>, message: impl Into<String>, hint: Option<String>) {
        self.source.wrong(span.unwrap_or_else(|| self.span.clone()), message, hint);
    }
}

/// What a value is, for people.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

pub(crate) fn text(value: &DeValue<'_>) -> Result<String, Problem> {
    match value {
        DeValue::String(s) => Ok(s.as_ref().to_owned()),
        DeValue::Integer(n) => {
            Err(Problem::new("must be a text, found an integer", format!("put it in quotes: \"{n}\"")))
        }
        DeValue::Boolean(b) => {
            Err(Problem::new("must be a text, found true or false", format!("put it in quotes: \"{b}\"")))
        }
        other => Err(Problem::new(format!("must be a text, found {}", kind(other)), "write a text in quotes")),
    }
}

fn integer(value: &DeValue<'_>, range: &std::ops::RangeInclusive<u64>) -> Result<u64, Problem> {
    let within = || format!("{} to {}", range.start(), range.end());
    match value {
        DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix())
            .ok()
            .filter(|n| range.contains(n))
            .ok_or_else(|| Problem::new(format!("{n} is out of range"), within())),
        DeValue::String(s) if s.trim().parse::<u64>().is_ok() => {
            Err(Problem::new("must be an integer, found a text", format!("write it without quotes: {}", s.trim())))
        }
        other => Err(Problem::new(format!("must be an integer, found {}", kind(other)), within())),
    }
}

/// A name that needs no quoting anywhere: SQL, file names, URLs.
pub(crate) fn identifier(name: String, length_max: usize, extra: &str) -> Result<String, Problem> {
    let mut allowed = "lowercase letters, digits, `_`".to_owned();
    for c in extra.chars() {
        allowed.push_str(&format!(", `{c}`"));
    }
    if name.is_empty() {
        return Err(Problem::new("must not be empty", allowed));
    }
    if let Some(bad) =
        name.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_' || extra.contains(*c)))
    {
        return Err(Problem::new(
            format!("`{}` may not be in a name", bad.escape_debug()),
            format!("allowed: {allowed}"),
        ));
    }
    if name.starts_with(|c: char| !(c.is_ascii_lowercase() || c == '_')) {
        return Err(Problem::new("a name begins with a letter", format!("allowed: {allowed}")));
    }
    if name.len() > length_max {
        return Err(Problem::new(format!("is too long: {} characters", name.len()), format!("at most {length_max}")));
    }
    Ok(name)
}
