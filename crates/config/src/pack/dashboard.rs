//! `dashboards/*.toml`.

use std::{collections::BTreeMap, path::Path};

use millrace_contract::report::{Dashboard, Param, ParamType, Report, Tile};

use super::report::{TYPES, unfit};
use crate::{
    diagnostic::{Diagnostic, Source, suggest},
    schema,
    table::{Problem, Reader, identifier, parse_document, text},
};

pub(super) fn parse_all(
    origin: &Path,
    files: &BTreeMap<String, String>,
    reports: &[Report],
    found: &mut Vec<Diagnostic>,
) -> Vec<Dashboard> {
    super::in_folder(files, "dashboards")
        .filter_map(|(file, document)| {
            let slug = file.strip_suffix(".toml")?;
            Some(parse(&origin.join("dashboards").join(file), slug, document, reports, found))
        })
        .collect()
}

fn parse(path: &Path, slug: &str, document: &str, reports: &[Report], found: &mut Vec<Diagnostic>) -> Dashboard {
    let source = Source::new(path, document);
    if let Err(problem) = identifier(slug.to_owned(), 60, "-") {
        source.wrong(0..0, format!("the dashboard's file name: {}", problem.message), problem.hint);
    }
    let parsed = parse_document(&source);
    let table = Reader::new(&source, &schema::DASHBOARD, Some(parsed.get_ref()), 0..0);
    let names: Vec<&str> = reports.iter().map(|r| r.name.as_str()).collect();
    let mut tiles = Vec::new();
    let mut shown: Vec<&Report> = Vec::new();
    for tile in table.tables("tile", &schema::TILE).unwrap_or_default() {
        let report = tile.read("report", |v| {
            let name = text(v)?;
            reports.iter().find(|r| r.name == name).ok_or_else(|| Problem {
                message: format!("there is no report called `{name}`"),
                hint: suggest(&name, "reports", &names),
            })
        });
        let width = u8::try_from(tile.integer("width", 1..=12)).unwrap_or(6);
        let title = tile.text_maybe("title");
        if let Some(report) = report {
            shown.push(report.value);
            tiles.push(Tile { report: report.value.name.clone(), width, title });
        }
    }
    let filters = table.tables("filters", &schema::FILTER).unwrap_or_default();
    let filters = filters.iter().map(|filter| parse_filter(filter, &shown)).collect();
    let dashboard = Dashboard {
        slug: slug.to_owned(),
        title: table.text("title"),
        description: table.text("description"),
        filters,
        tiles,
    };
    found.extend(source.into_found());
    dashboard
}

/// A filter reaches at least one report on the page, and its type is theirs.
fn parse_filter(filter: &Reader<'_>, shown: &[&Report]) -> Param {
    let param_type = filter
        .read("type", |v| {
            let name = text(v)?;
            TYPES.iter().find(|(known, _)| *known == name).map(|(_, t)| *t).ok_or_else(|| {
                let names: Vec<&str> = TYPES.iter().map(|(n, _)| *n).collect();
                Problem { message: format!("unknown type `{name}`"), hint: suggest(&name, "types", &names) }
            })
        })
        .map_or(ParamType::Text, |t| t.value);
    let at = filter.read("name", |v| identifier(text(v)?, 60, ""));
    let (name, span) = at.map(|a| (a.value, a.span)).unwrap_or_default();
    if !name.is_empty() {
        let params: Vec<&Param> = shown.iter().flat_map(|r| &r.params).collect();
        let mut names: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if !names.contains(&name.as_str()) {
            filter.wrong(
                span.clone(),
                format!("no report on this page has a parameter `{name}`"),
                suggest(&name, "their parameters", &names),
            );
        }
        for report in shown {
            if report.params.iter().any(|p| p.name == name && p.param_type != param_type) {
                filter.wrong(
                    span.clone(),
                    format!("the filter `{name}` is of another type than in the report `{}`", report.name),
                    Some("give the filter the report's type".to_owned()),
                );
            }
        }
    }
    let default = filter.read("default", |v| {
        let written = text(v)?;
        match unfit(param_type, &written) {
            Some(hint) => Err(Problem::new(format!("`{written}` does not fit the filter's type"), hint)),
            None => Ok(written),
        }
    });
    Param {
        label: filter.text_maybe("label").unwrap_or_else(|| name.clone()),
        param_type,
        default: default.map(|d| d.value),
        choices_sql: filter.text_maybe("choices"),
        name,
    }
}
