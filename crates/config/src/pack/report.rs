//! `reports/*.sql`: a head that says how a statement is shown, and the statement.

use std::{collections::BTreeMap, ops::Range, path::Path};

use millrace_contract::report::{ChartKind, Drill, Format, Param, ParamType, Report};

use super::{head, sql};
use crate::{
    diagnostic::{Diagnostic, Source, suggest},
    table::identifier,
};

/// The lines of a head, for the reference page and for the check of keys.
pub(crate) const HEAD_REFERENCE: &[(&str, &str)] = &[
    ("title: Monthly revenue", "shown above the chart; required"),
    ("description: What was paid, by month", "one sentence"),
    (
        "param: from date \"From\" = 2024-01-01",
        "a parameter: name, `text`, `integer`, `decimal` or `date`, label, and what holds if the reader gives none; without a default it is null",
    ),
    ("choices: segment: SELECT …", "the first column lists the values of the parameter `segment`"),
    ("chart: bar", "`number`, `bar`, `horizontal_bar`, `line`, `pie` or `table` (the default)"),
    ("x: month", "the column on the axis, or the slices' names"),
    ("y: principal, interest", "the columns that are drawn"),
    (
        "format: revenue=money, month=month",
        "how columns are written: `plain`, `integer`, `money`, `percent`, `date` or `month`",
    ),
    (
        "drill: payments(from=month)",
        "the report that a click opens, its parameters taken from columns of the clicked row",
    ),
];

const KEYS: &[&str] = &["title", "description", "param", "choices", "chart", "x", "y", "format", "drill"];

const CHARTS: &[(&str, ChartKind)] = &[
    ("number", ChartKind::Number),
    ("bar", ChartKind::Bar),
    ("horizontal_bar", ChartKind::HorizontalBar),
    ("line", ChartKind::Line),
    ("pie", ChartKind::Pie),
    ("table", ChartKind::Table),
];

const FORMATS: &[(&str, Format)] = &[
    ("plain", Format::Plain),
    ("integer", Format::Integer),
    ("money", Format::Money),
    ("percent", Format::Percent),
    ("date", Format::Date),
    ("month", Format::Month),
];

pub(super) const TYPES: &[(&str, ParamType)] = &[
    ("text", ParamType::Text),
    ("integer", ParamType::Integer),
    ("decimal", ParamType::Decimal),
    ("date", ParamType::Date),
];

/// The place of a drill, kept until every report is known.
#[derive(Debug)]
pub(super) struct DrillPlace {
    report: String,
    place: Diagnostic,
}

pub(super) fn parse_all(
    origin: &Path,
    files: &BTreeMap<String, String>,
    found: &mut Vec<Diagnostic>,
) -> (Vec<Report>, Vec<DrillPlace>) {
    let (mut reports, mut drills) = (Vec::new(), Vec::new());
    for (file, text) in super::in_folder(files, "reports") {
        let Some(name) = file.strip_suffix(".sql") else { continue };
        let path = origin.join("reports").join(file);
        let (report, place) = parse(&path, name, text, found);
        drills.extend(place.map(|place| DrillPlace { report: report.name.clone(), place }));
        reports.push(report);
    }
    (reports, drills)
}

/// Parses one report; a drill's place comes along.
fn parse(path: &Path, name: &str, text: &str, found: &mut Vec<Diagnostic>) -> (Report, Option<Diagnostic>) {
    let source = Source::new(path, text);
    if let Err(problem) = identifier(name.to_owned(), 60, "-") {
        source.wrong(0..0, format!("the report's file name: {}", problem.message), problem.hint);
    }
    let head = head::parse(&source, KEYS, &["param", "choices"]);
    let title = head.required(&source, "title");
    let description = head.one("description").map(|f| f.value.clone()).unwrap_or_default();
    let mut params = params(&source, &head);
    choices(&source, &head, &mut params);

    let chart = head
        .one("chart")
        .and_then(|f| word(&source, f.span.clone(), &f.value, "chart", CHARTS))
        .unwrap_or(ChartKind::Table);
    let x = head.one("x").filter(|f| !f.value.is_empty()).map(|f| f.value.clone());
    let y: Vec<String> = head.one("y").map(|f| list(&f.value)).unwrap_or_default();
    let needs_x = !matches!(chart, ChartKind::Number | ChartKind::Table);
    if needs_x && x.is_none() {
        let span = head.one("chart").map_or(0..0, |f| f.span.clone());
        source.wrong(span, "this chart needs `x`", Some("name the column on the axis: -- x: month".to_owned()));
    }
    if chart != ChartKind::Table && y.is_empty() {
        let span = head.one("chart").map_or(0..0, |f| f.span.clone());
        source.wrong(span, "this chart needs `y`", Some("name the columns that are drawn: -- y: revenue".to_owned()));
    }
    let formats = formats(&source, &head);
    let drill = head.one("drill").and_then(|f| parse_drill(&source, f));
    let drill_place = head.one("drill").filter(|_| drill.is_some()).and_then(|f| {
        let place = Source::new(path, text);
        place.wrong(f.span.clone(), "", None);
        place.into_found().into_iter().next()
    });

    let statement = text.get(head.body..).unwrap_or_default().trim_end().trim_end_matches(';').trim_end();
    if statement.is_empty() {
        source.wrong(text.len()..text.len(), "there is no statement below the head", None);
    }
    let names: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
    let used = sql::placeholders(statement);
    for placeholder in used.iter().filter(|p| !names.contains(&p.name.as_str())) {
        let span = head.body + placeholder.span.start..head.body + placeholder.span.end;
        let hint = match suggest(&placeholder.name, "parameters", &names) {
            Some(near) if near.starts_with("did you") => near,
            _ => format!("declare it: -- param: {} text \"Label\"", placeholder.name),
        };
        source.wrong(span, format!("unknown parameter `:{}`", placeholder.name), Some(hint));
    }
    for (param, field) in params.iter().zip(head.all("param").filter(|f| declared_name(&f.value).is_some())) {
        if !used.iter().any(|p| p.name == param.name) {
            source.wrong(
                field.span.clone(),
                format!("the parameter `{}` is not used", param.name),
                Some(format!("use :{} in the statement, or remove the line", param.name)),
            );
        }
    }
    let sql = sql::number(statement, &names);
    found.extend(source.into_found());
    let report = Report {
        name: name.to_owned(),
        title,
        description,
        source_sql: statement.to_owned(),
        sql,
        params,
        chart,
        x,
        y,
        formats,
        drill,
    };
    (report, drill_place)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// Looks a word up among the known ones; an unknown one is recorded.
pub(super) fn word<T: Copy>(
    source: &Source<'_>,
    span: Range<usize>,
    text: &str,
    what: &str,
    known: &[(&str, T)],
) -> Option<T> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return Some(*value);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    source.wrong(span, format!("unknown {what} `{text}`"), suggest(text, &format!("{what}s"), &names));
    None
}

fn declared_name(value: &str) -> Option<&str> {
    value.split_whitespace().next().filter(|n| identifier((*n).to_owned(), 60, "").is_ok())
}

const PARAM_FORM: &str = "write: -- param: from date \"From\" = 2024-01-01";

fn params(source: &Source<'_>, head: &head::Head<'_>) -> Vec<Param> {
    let mut params: Vec<Param> = Vec::new();
    for field in head.all("param") {
        let wrong = |message: String| source.wrong(field.span.clone(), message, Some(PARAM_FORM.to_owned()));
        let Some(name) = declared_name(&field.value) else {
            wrong("a parameter begins with its name: lowercase letters, digits, `_`".to_owned());
            continue;
        };
        if params.iter().any(|p| p.name == name) {
            wrong(format!("the parameter `{name}` is declared twice"));
        }
        let rest = field.value.get(name.len()..).unwrap_or_default().trim();
        let (type_name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let param_type = if type_name.is_empty() {
            wrong(format!("the parameter `{name}` lacks its type"));
            ParamType::Text
        } else {
            word(source, field.span.clone(), type_name, "type", TYPES).unwrap_or(ParamType::Text)
        };
        let rest = rest.trim();
        let (label, rest) = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((label, rest)) => (label.to_owned(), rest.trim()),
                None => {
                    wrong("the label's closing quote is missing".to_owned());
                    (quoted.to_owned(), "")
                }
            },
            None => (name.to_owned(), rest),
        };
        let default = match rest.strip_prefix('=').map(str::trim) {
            Some(default) => Some(default.to_owned()),
            None => {
                if !rest.is_empty() {
                    wrong(format!("`{rest}` is not expected here"));
                }
                None
            }
        };
        if let Some(default) = &default
            && let Some(hint) = unfit(param_type, default)
        {
            source.wrong(
                field.span.clone(),
                format!("the default `{default}` does not fit the type {type_name}"),
                Some(hint.to_owned()),
            );
        }
        params.push(Param { name: name.to_owned(), param_type, label, default, choices_sql: None });
    }
    params
}

/// What to write instead, if `text` is not a value of the type.
pub(super) fn unfit(param_type: ParamType, text: &str) -> Option<&'static str> {
    let fits = param_type.read(text).is_ok();
    (!fits).then_some(match param_type {
        ParamType::Text => "write a text",
        ParamType::Integer => "write a whole number: 12",
        ParamType::Decimal => "write a number: 12.50",
        ParamType::Date => "write a date as year-month-day: 2024-01-31",
    })
}

fn choices(source: &Source<'_>, head: &head::Head<'_>, params: &mut [Param]) {
    for field in head.all("choices") {
        let Some((name, statement)) = field.value.split_once(':') else {
            source.wrong(
                field.span.clone(),
                "a parameter's name and a colon must come first",
                Some("write: -- choices: segment: SELECT …".to_owned()),
            );
            continue;
        };
        let (name, statement) = (name.trim(), statement.trim());
        let names: Vec<String> = params.iter().map(|p| p.name.clone()).collect();
        match params.iter_mut().find(|p| p.name == name) {
            Some(param) if !statement.is_empty() => param.choices_sql = Some(statement.to_owned()),
            Some(_) => source.wrong(
                field.span.clone(),
                "the statement is missing",
                Some("write: -- choices: segment: SELECT …".to_owned()),
            ),
            None => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                source.wrong(
                    field.span.clone(),
                    format!("unknown parameter `{name}`"),
                    suggest(name, "parameters", &names),
                );
            }
        }
    }
}

fn formats(source: &Source<'_>, head: &head::Head<'_>) -> Vec<(String, Format)> {
    let Some(field) = head.one("format") else { return Vec::new() };
    let mut formats = Vec::new();
    for part in list(&field.value) {
        let span = part_span(field, &part);
        match part.split_once('=') {
            Some((column, format)) => {
                let known = word(source, span, format.trim(), "format", FORMATS);
                formats.extend(known.map(|f| (column.trim().to_owned(), f)));
            }
            None => source.wrong(
                span,
                format!("`{part}` is not column=format"),
                Some("write: -- format: revenue=money, month=month".to_owned()),
            ),
        }
    }
    formats
}

fn part_span(field: &head::Field<'_>, part: &str) -> Range<usize> {
    match field.value.find(part) {
        Some(at) if !field.value.contains('\n') => field.span.start + at..field.span.start + at + part.len(),
        _ => field.span.clone(),
    }
}

fn parse_drill(source: &Source<'_>, field: &head::Field<'_>) -> Option<Drill> {
    let form = || Some("write: -- drill: payments(from=month, branch=branch)".to_owned());
    let parsed = field.value.strip_suffix(')').and_then(|v| v.split_once('('));
    let Some((report, inner)) = parsed else {
        source.wrong(field.span.clone(), "a drill names a report and its parameters in parentheses", form());
        return None;
    };
    let mut bind = Vec::new();
    for part in list(inner) {
        match part.split_once('=') {
            Some((param, column)) => bind.push((param.trim().to_owned(), column.trim().to_owned())),
            None => source.wrong(part_span(field, &part), format!("`{part}` is not parameter=column"), form()),
        }
    }
    Some(Drill { report: report.trim().to_owned(), bind })
}

/// Every drill opens a report that exists, with parameters that it has.
pub(super) fn check_drills(reports: &[Report], places: &[DrillPlace], found: &mut Vec<Diagnostic>) {
    let names: Vec<&str> = reports.iter().map(|r| r.name.as_str()).collect();
    for DrillPlace { report, place } in places {
        let Some(drill) = reports.iter().find(|r| r.name == *report).and_then(|r| r.drill.as_ref()) else { continue };
        let mut wrong = |message: String, hint: Option<String>| {
            found.push(Diagnostic { message, hint, ..place.clone() });
        };
        let Some(target) = reports.iter().find(|r| r.name == drill.report) else {
            wrong(format!("there is no report called `{}`", drill.report), suggest(&drill.report, "reports", &names));
            continue;
        };
        let params: Vec<&str> = target.params.iter().map(|p| p.name.as_str()).collect();
        for (param, _) in drill.bind.iter().filter(|(param, _)| !params.contains(&param.as_str())) {
            wrong(
                format!("the report `{}` has no parameter `{param}`", target.name),
                suggest(param, "its parameters", &params),
            );
        }
    }
}
