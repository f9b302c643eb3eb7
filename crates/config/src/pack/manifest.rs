//! `pack.toml`.

use std::path::Path;

use crate::{
    diagnostic::{Diagnostic, Source},
    schema,
    table::{Problem, Reader, parse_document, text},
};

/// A role that the pack's migrations grant rights to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub name: String,
    pub login: bool,
    /// Databases.
    pub connect: Vec<String>,
    pub description: String,
}

#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) description: String,
    pub(super) version: String,
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) currency: Option<String>,
    /// With its place, for the check that it exists.
    pub(super) default_dashboard: Option<(String, Diagnostic)>,
    pub(super) roles: Vec<Role>,
}

pub(super) fn parse(path: &Path, document: &str, found: &mut Vec<Diagnostic>) -> Manifest {
    let source = Source::new(path, document);
    let parsed = parse_document(&source);
    let table = Reader::new(&source, &schema::PACK, Some(parsed.get_ref()), 0..0);
    let currency = table.read("currency", |v| match text(v)? {
        code if code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase()) => Ok(code),
        other => {
            Err(Problem::new(format!("`{other}` is not a currency code"), "three capital letters, as in ISO 4217: KES"))
        }
    });
    let mut roles: Vec<Role> = Vec::new();
    for role in table.tables("roles", &schema::ROLE).unwrap_or_default() {
        let name = role.name("name", 63, "");
        if name == "replicator" {
            role.wrong(
                None,
                "the role `replicator` is the platform's own",
                Some("remove it: the nodes have it already".to_owned()),
            );
        }
        if name == "postgres" || name.starts_with("pg_") {
            role.wrong(None, format!("the role name `{name}` is PostgreSQL's own"), Some("choose another".to_owned()));
        }
        if !name.is_empty() && roles.iter().any(|r| r.name == name) {
            role.wrong(None, format!("the role `{name}` is declared twice"), Some("remove one".to_owned()));
        }
        let (login, connect) = (role.boolean("login"), role.texts("connect"));
        if !login && !connect.is_empty() {
            role.wrong(
                None,
                format!("the role `{name}` may connect but not log in"),
                Some("set login = true".to_owned()),
            );
        }
        roles.push(Role { name, login, connect, description: role.text("description") });
    }
    let manifest = Manifest {
        name: table.name("name", 40, "-"),
        title: table.text("title"),
        description: table.text("description"),
        version: table.text("version"),
        database: table.name("database", 63, ""),
        schema: table.name("schema", 63, ""),
        currency: currency.map(|c| c.value),
        default_dashboard: None,
        roles,
    };
    let dashboard = table.read("default_dashboard", text);
    found.extend(source.into_found());
    let default_dashboard = dashboard.map(|slug| {
        // the place is kept for a check that needs the other files
        let place = Source::new(path, document);
        place.wrong(slug.span.unwrap_or(0..0), "", None);
        (slug.value, place.into_found().into_iter().next())
    });
    Manifest { default_dashboard: default_dashboard.and_then(|(slug, place)| Some((slug, place?))), ..manifest }
}
