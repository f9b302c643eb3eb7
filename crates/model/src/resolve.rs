//! Declarations → models: names, duplicates, cycles, expressions.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use millrace_base::ident::Literal;
use toml::Spanned;

use crate::{
    declare::{self, Scalar, Text},
    error::ModelError,
    expression::{self, Allowed, Expression},
    star::{Aggregate, Date, Dimension, Fact, Join, Lookup, LookupInto, Model, Seed, Source, View},
};

/// A column of a source table that a declaration uses, and where.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    pub(crate) source: Source,
    pub(crate) column: String,
    pub(crate) at: ModelError,
}

/// What a set of files means.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// In build order.
    pub(crate) models: IndexMap<String, Model>,
    pub(crate) uses: Vec<Use>,
}

/// Resolves parsed files, each with its text.
pub(crate) fn resolve(files: &[(Text<'_>, declare::File)]) -> Result<Resolved, Vec<ModelError>> {
    let mut resolver = Resolver::default();
    // dimensions before facts before views: each kind may name only what comes before it
    for (text, file) in files {
        for declared in &file.dimension {
            resolver.dimension(*text, declared);
        }
        for declared in &file.seed {
            resolver.seed(*text, declared);
        }
        for declared in &file.date {
            resolver.date(*text, declared);
        }
    }
    for (text, file) in files {
        for declared in &file.fact {
            resolver.fact(*text, declared);
        }
    }
    resolver.views(files);
    if resolver.errors.is_empty() {
        Ok(Resolved { models: resolver.models, uses: resolver.uses })
    } else {
        Err(resolver.errors)
    }
}

#[derive(Default)]
struct Resolver {
    models: IndexMap<String, Model>,
    uses: Vec<Use>,
    /// Bare table name → source, to refuse two schemas' tables of one name.
    tables: BTreeMap<String, Source>,
    errors: Vec<ModelError>,
}

/// Names that mean a column of ours in every model.
fn reserved(name: &str) -> bool {
    name.starts_with('_') || ["effective_date", "valid_from", "valid_to", "is_current"].contains(&name)
}

impl Resolver {
    fn name(&mut self, text: Text<'_>, name: &Spanned<String>) -> String {
        let plain = name.get_ref().clone();
        let good = plain.starts_with(|c: char| c.is_ascii_lowercase())
            && plain.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && plain.len() <= 48;
        if !good {
            self.errors.push(
                text.error(name, format!("`{plain}` is not a model's name"))
                    .hint("lower-case letters, digits and underscores, a letter first, at most 48"),
            );
        }
        if self.models.contains_key(&plain) {
            self.errors.push(text.error(name, format!("the name `{plain}` is used twice")));
        }
        plain
    }

    fn source(&mut self, text: Text<'_>, source: &Spanned<String>) -> Option<Source> {
        let parsed = match source.get_ref().split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
                Source { schema: schema.to_owned(), table: table.to_owned() }
            }
            _ => {
                self.errors.push(
                    text.error(source, format!("`{}` is not a source table", source.get_ref()))
                        .hint("write schema.table"),
                );
                return None;
            }
        };
        let known = self.tables.entry(parsed.table.clone()).or_insert_with(|| parsed.clone());
        if *known != parsed {
            let message = format!("`{parsed}` and `{known}` would be one table in the warehouse");
            self.errors.push(text.error(source, message).hint("rename one of them on the source"));
            return None;
        }
        Some(parsed)
    }

    /// An expression whose columns may come from `scope`, the first of which is the model's own.
    fn expression(
        &mut self,
        text: Text<'_>,
        declared: &Spanned<String>,
        scope: &[Source],
        allowed: Allowed,
    ) -> Option<Expression> {
        let own = scope.first()?;
        let parsed = match expression::parse(declared.get_ref(), &own.table, allowed) {
            Ok(parsed) => parsed,
            Err(problem) => {
                self.errors.push(text.error(declared, problem));
                return None;
            }
        };
        for (table, column) in &parsed.columns {
            match scope.iter().find(|s| s.table == *table) {
                Some(source) => self.uses.push(Use {
                    source: source.clone(),
                    column: column.clone(),
                    at: text.error(declared, String::new()),
                }),
                None => {
                    let known = scope.iter().map(|s| s.table.as_str());
                    let error = text
                        .error(declared, format!("`{table}` in `{}` is not a table of this model", declared.get_ref()));
                    self.errors.push(error.near(table, known));
                    return None;
                }
            }
        }
        Some(parsed)
    }

    fn uses(&mut self, text: Text<'_>, source: &Source, column: &Spanned<String>) {
        self.uses.push(Use {
            source: source.clone(),
            column: column.get_ref().clone(),
            at: text.error(column, String::new()),
        });
    }

    fn columns_are_distinct<'a>(
        &mut self,
        text: Text<'_>,
        at: &Spanned<String>,
        names: impl IntoIterator<Item = &'a str>,
    ) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.to_lowercase()) {
                self.errors
                    .push(text.error(at, format!("the column `{name}` of `{}` is declared twice", at.get_ref())));
            }
        }
    }

    fn dimension(&mut self, text: Text<'_>, declared: &declare::Dimension) {
        let name = self.name(text, &declared.name);
        let historical = match declared.kind.get_ref() {
            1 => false,
            2 => true,
            other => {
                self.errors
                    .push(text.error(&declared.kind, format!("`{other}` is not a type of dimension")).hint("1 or 2"));
                false
            }
        };
        let Some(source) = self.source(text, &declared.source) else { return };
        if declared.key.is_empty() {
            self.errors.push(text.error(&declared.name, format!("`{name}` has no key")).hint("key = [\"column\"]"));
        }
        for column in &declared.key {
            self.uses(text, &source, column);
        }
        let mut attributes = Vec::new();
        for (attribute, sql) in &declared.attributes {
            if reserved(attribute) {
                self.errors.push(
                    text.error(sql, format!("`{attribute}` is a column that every dimension may have"))
                        .hint("choose another name"),
                );
            }
            if let Some(parsed) = self.expression(text, sql, std::slice::from_ref(&source), Allowed::Scalar) {
                attributes.push((attribute.clone(), parsed));
            }
        }
        let key: Vec<String> = declared.key.iter().map(|k| k.get_ref().clone()).collect();
        let names = std::iter::once(declared.surrogate.get_ref().as_str())
            .chain(key.iter().map(String::as_str))
            .chain(declared.attributes.keys().map(String::as_str));
        self.columns_are_distinct(text, &declared.name, names);
        if declared.tracked.is_some() && !historical {
            self.errors
                .push(text.error(&declared.kind, "`tracked` belongs to type 2").hint("type = 2, or leave it out"));
        }
        let mut tracked: BTreeSet<String> = declared.attributes.keys().cloned().collect();
        if let Some(listed) = &declared.tracked {
            tracked.clear();
            for attribute in listed {
                if declared.attributes.contains_key(attribute.get_ref()) {
                    tracked.insert(attribute.get_ref().clone());
                } else {
                    let error =
                        text.error(attribute, format!("`{}` is not an attribute of `{name}`", attribute.get_ref()));
                    self.errors.push(error.near(attribute.get_ref(), declared.attributes.keys().map(String::as_str)));
                }
            }
        }
        let known: Vec<&str> = declared.attributes.keys().map(String::as_str).collect();
        let unknown = self.unknown(text, &name, &declared.unknown, &known);
        let surrogate = declared.surrogate.get_ref().clone();
        let description = declared.description.clone();
        self.models.insert(
            name.clone(),
            Model::Dimension(Dimension {
                name,
                description,
                historical,
                source,
                key,
                surrogate,
                attributes,
                tracked,
                unknown,
            }),
        );
    }

    fn unknown(
        &mut self,
        text: Text<'_>,
        name: &str,
        declared: &IndexMap<String, Spanned<Scalar>>,
        known: &[&str],
    ) -> Vec<(String, String)> {
        let mut unknown = Vec::new();
        for (column, value) in declared {
            if known.contains(&column.as_str()) {
                unknown.push((column.clone(), literal(value.get_ref())));
            } else {
                let error = text.error(value, format!("`{column}` is not a column of `{name}`"));
                self.errors.push(error.near(column, known.iter().copied()));
            }
        }
        unknown
    }

    fn seed(&mut self, text: Text<'_>, declared: &declare::Seed) {
        let name = self.name(text, &declared.name);
        let key = declared.key.get_ref().clone();
        let mut columns: Vec<String> = Vec::new();
        for row in &declared.rows {
            for column in row.get_ref().keys().filter(|c| !columns.contains(c)).cloned().collect::<Vec<_>>() {
                columns.push(column);
            }
        }
        if !columns.contains(&key) {
            self.errors.push(text.error(&declared.key, format!("no row of `{name}` has its key `{key}`")));
        }
        let mut seen = BTreeSet::new();
        let mut rows = Vec::new();
        for row in &declared.rows {
            match row.get_ref().get(&key) {
                None => self.errors.push(text.error(row, format!("this row of `{name}` has no `{key}`"))),
                Some(value) if !seen.insert(literal(value)) => {
                    self.errors.push(text.error(row, format!("`{key}` {} is there twice", literal(value))));
                }
                Some(_) => {}
            }
            rows.push(columns.iter().map(|c| row.get_ref().get(c).map_or_else(|| "null".into(), literal)).collect());
        }
        let known: Vec<&str> = columns.iter().map(String::as_str).collect();
        let unknown = self.unknown(text, &name, &declared.unknown, &known);
        let unknown = columns
            .iter()
            .map(|c| unknown.iter().find(|(u, _)| u == c).map_or_else(|| "null".to_owned(), |(_, value)| value.clone()))
            .collect();
        let surrogate = declared.surrogate.get_ref().clone();
        self.columns_are_distinct(
            text,
            &declared.name,
            std::iter::once(surrogate.as_str()).chain(columns.iter().map(String::as_str)),
        );
        let description = declared.description.clone();
        self.models
            .insert(name.clone(), Model::Seed(Seed { name, description, surrogate, key, columns, rows, unknown }));
    }

    fn date(&mut self, text: Text<'_>, declared: &declare::Date) {
        let name = self.name(text, &declared.name);
        let (first_year, last_year) = (*declared.first_year.get_ref(), *declared.last_year.get_ref());
        if !(1..=9999).contains(&first_year) || last_year < first_year || last_year > 9999 {
            self.errors
                .push(text.error(&declared.first_year, format!("{first_year} to {last_year} is not a span of years")));
        }
        let description = declared.description.clone();
        self.models.insert(name.clone(), Model::Date(Date { name, description, first_year, last_year }));
    }

    fn on(
        &mut self,
        text: Text<'_>,
        joined: &Source,
        at: &Spanned<String>,
        on: &IndexMap<String, Spanned<String>>,
        scope: &[Source],
    ) -> Vec<(String, Expression)> {
        if on.is_empty() {
            self.errors.push(
                text.error(at, format!("`{joined}` is joined on nothing")).hint("on = { column = \"table.column\" }"),
            );
        }
        let mut pairs = Vec::new();
        for (column, sql) in on {
            self.uses.push(Use { source: joined.clone(), column: column.clone(), at: text.error(sql, String::new()) });
            if let Some(parsed) = self.expression(text, sql, scope, Allowed::Scalar) {
                pairs.push((column.clone(), parsed));
            }
        }
        pairs
    }

    fn fact(&mut self, text: Text<'_>, declared: &declare::Fact) {
        let name = self.name(text, &declared.name);
        let Some(source) = self.source(text, &declared.source) else { return };
        let mut scope = vec![source.clone()];
        if declared.grain.is_empty() {
            self.errors.push(text.error(&declared.name, format!("`{name}` has no grain")).hint("grain = [\"column\"]"));
        }
        for column in &declared.grain {
            self.uses(text, &source, column);
        }
        let mut joins = Vec::new();
        for join in &declared.join {
            let Some(joined) = self.source(text, &join.source) else { continue };
            if scope.contains(&joined) {
                self.errors.push(text.error(&join.source, format!("`{joined}` is already a table of this model")));
                continue;
            }
            let on = self.on(text, &joined, &join.source, &join.on, &scope);
            scope.push(joined.clone());
            joins.push(Join { source: joined, on });
        }
        let mut aggregates = Vec::new();
        for aggregate in &declared.aggregate {
            let Some(gathered) = self.source(text, &aggregate.source) else { continue };
            let on = self.on(text, &gathered, &aggregate.source, &aggregate.on, &scope);
            let mut columns = Vec::new();
            for (column, sql) in &aggregate.columns {
                if let Some(parsed) = self.expression(text, sql, std::slice::from_ref(&gathered), Allowed::Aggregate) {
                    columns.push((column.clone(), parsed));
                }
            }
            aggregates.push(Aggregate { source: gathered, on, columns });
        }
        let lookups = declared.lookup.iter().filter_map(|lookup| self.lookup(text, lookup, &scope)).collect();
        let mut columns = Vec::new();
        for (column, sql) in &declared.columns {
            if let Some(parsed) = self.expression(text, sql, &scope, Allowed::Scalar) {
                columns.push((column.clone(), parsed));
            }
        }
        let names = declared
            .grain
            .iter()
            .map(|g| g.get_ref().as_str())
            .chain(declared.lookup.iter().map(|l| l.column.get_ref().as_str()))
            .chain(declared.aggregate.iter().flat_map(|a| a.columns.keys().map(String::as_str)))
            .chain(declared.columns.keys().map(String::as_str));
        self.columns_are_distinct(text, &declared.name, names);
        let grain = declared.grain.iter().map(|g| g.get_ref().clone()).collect();
        let description = declared.description.clone();
        self.models.insert(
            name.clone(),
            Model::Fact(Fact { name, description, source, grain, joins, aggregates, lookups, columns }),
        );
    }

    fn lookup(&mut self, text: Text<'_>, declared: &declare::Lookup, scope: &[Source]) -> Option<Lookup> {
        let dimension = declared.dimension.get_ref();
        let into = match self.models.get(dimension) {
            Some(Model::Dimension(d)) => {
                LookupInto::Dimension { surrogate: d.surrogate.clone(), key: d.key.clone(), historical: d.historical }
            }
            Some(Model::Seed(s)) => LookupInto::Seed { surrogate: s.surrogate.clone(), key: s.key.clone() },
            Some(Model::Date(d)) => LookupInto::Date { first_year: d.first_year, last_year: d.last_year },
            Some(Model::Fact(_) | Model::View(_)) | None => {
                let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
                let error = text.error(&declared.dimension, format!("there is no dimension `{dimension}`"));
                self.errors.push(error.near(dimension, known));
                return None;
            }
        };
        let (wanted, historical) = match &into {
            LookupInto::Dimension { key, historical, .. } => (key.len(), *historical),
            LookupInto::Seed { .. } | LookupInto::Date { .. } => (1, false),
        };
        let span = declared.key.span();
        let given: Vec<Spanned<String>> =
            declared.key.get_ref().as_slice().iter().map(|k| Spanned::new(span.clone(), k.clone())).collect();
        if given.len() != wanted {
            let message = format!("`{dimension}` is looked up by {wanted} key column(s), {} given", given.len());
            self.errors.push(text.error(&declared.column, message));
        }
        if historical != declared.as_of.is_some() {
            let error = if historical {
                text.error(&declared.column, format!("`{dimension}` has versions: which one?"))
                    .hint("as_of = \"the event's time\"")
            } else {
                text.error(&declared.column, format!("`{dimension}` has no versions, so `as_of` means nothing"))
            };
            self.errors.push(error);
        }
        let key = given.iter().filter_map(|k| self.expression(text, k, scope, Allowed::Scalar)).collect();
        let as_of = declared.as_of.as_ref().and_then(|a| self.expression(text, a, scope, Allowed::Scalar));
        Some(Lookup { column: declared.column.get_ref().clone(), dimension: dimension.clone(), into, key, as_of })
    }

    /// Views may read each other in any order of the files, but not in a circle.
    fn views(&mut self, files: &[(Text<'_>, declare::File)]) {
        let mut names: BTreeSet<String> = self.models.keys().cloned().collect();
        names.extend(files.iter().flat_map(|(_, f)| &f.view).map(|v| v.name.get_ref().clone()));
        let mut waiting = Vec::new();
        for (text, declared) in files.iter().flat_map(|(text, f)| f.view.iter().map(move |v| (*text, v))) {
            let name = self.name(text, &declared.name);
            if waiting.iter().any(|(_, _, view): &(_, _, View)| view.name == name) {
                self.errors.push(text.error(&declared.name, format!("the name `{name}` is used twice")));
                continue;
            }
            let translated = match expression::translate_query(declared.sql.get_ref(), &names) {
                Ok(translated) => translated,
                Err(problem) => {
                    self.errors.push(text.error(&declared.sql, format!("view `{name}`: {problem}")));
                    continue;
                }
            };
            let mut reads = BTreeSet::new();
            for relation in &translated.relations {
                match relation.strip_prefix("warehouse.").filter(|r| names.contains(*r)) {
                    Some(model) => {
                        reads.insert(model.to_owned());
                    }
                    None => {
                        let error = text
                            .error(&declared.sql, format!("view `{name}` reads `{relation}`, which is not a model"));
                        let bare = relation.rsplit('.').next().unwrap_or(relation);
                        self.errors.push(error.near(bare, names.iter().map(String::as_str)));
                    }
                }
            }
            let declared_sql = declared.sql.get_ref().trim().to_owned();
            let view = View {
                name,
                description: declared.description.clone(),
                sql: translated.sql,
                declared: declared_sql,
                reads,
            };
            waiting.push((text, declared, view));
        }
        while !waiting.is_empty() {
            let open: BTreeSet<String> = waiting.iter().map(|(_, _, v)| v.name.clone()).collect();
            let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, _, v)| v.reads.is_disjoint(&open));
            if ready.is_empty() {
                for (text, declared, _) in &rest {
                    self.errors.push(text.error(
                        &declared.name,
                        format!(
                            "view `{}` reads itself by way of {}",
                            declared.name.get_ref(),
                            open.iter().cloned().collect::<Vec<_>>().join(", ")
                        ),
                    ));
                }
                return;
            }
            for (_, _, view) in ready {
                self.models.insert(view.name.clone(), Model::View(view));
            }
            waiting = rest;
        }
    }
}

fn literal(value: &Scalar) -> String {
    match value {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Integer(value) => value.to_string(),
        Scalar::Text(text) => Literal(text).to_string(),
    }
}
