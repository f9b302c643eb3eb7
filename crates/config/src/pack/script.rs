//! `simulate/*.sql`: what live customers do, each with how often.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::head;
use crate::diagnostic::{Diagnostic, Source};

/// One thing that a simulated customer does, in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub path: PathBuf,
    /// `-- name:`, or the file's name without `.sql`.
    pub name: String,
    /// `-- weight:`: how often, against the others; greater than 0. 1 if absent.
    pub weight: f64,
    /// Below the head, `:name` parameters as written.
    pub sql: String,
}

pub(super) fn parse_all(origin: &Path, files: &BTreeMap<String, String>, found: &mut Vec<Diagnostic>) -> Vec<Script> {
    let mut scripts = Vec::new();
    for (file, text) in super::in_folder(files, "simulate") {
        let Some(stem) = file.strip_suffix(".sql") else { continue };
        let path = origin.join("simulate").join(file);
        let source = Source::new(&path, text);
        let head = head::parse(&source, &["name", "weight", "description"], &[]);
        let mut weight = 1.0;
        if let Some(field) = head.one("weight") {
            match field.value.parse::<f64>() {
                Ok(number) if number > 0.0 && number.is_finite() => weight = number,
                _ => source.wrong(
                    field.span.clone(),
                    format!("`{}` is not a weight", field.value),
                    Some("write a number greater than 0".to_owned()),
                ),
            }
        }
        let sql = text.get(head.body..).unwrap_or_default().to_owned();
        if sql.trim().is_empty() {
            source.wrong(text.len()..text.len(), "there is no statement below the head", None);
        }
        let name = head.one("name").map_or_else(|| stem.to_owned(), |f| f.value.clone());
        found.extend(source.into_found());
        scripts.push(Script { path, name, weight, sql });
    }
    scripts
}
