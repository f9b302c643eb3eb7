//! The settings that a session has made, and how another session gets them.
//!
//! A client's settings follow it: after a transaction that may have changed some, the server is asked which are not at
//! their default ([`probe`]); before a transaction on a server whose settings differ, they are made the same
//! ([`replay`]). So it does not matter by which statement, function or rollback they came to be what they are.
//! Pure: no I/O.

use std::rc::Rc;

use crate::message::data_row;

/// Settings that differ from what the server's own connection began with, sorted by name. Cheap to share and compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings(Vec<(Box<str>, Box<str>)>);

/// What a server said about the session after a transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionState {
    pub(crate) settings: Settings,
    /// What ties the client to this server: `LISTEN`, `temporary table`, …
    pub(crate) pins: Vec<Box<str>>,
}

impl Settings {
    /// From pairs; names are compared without case, as the server does.
    pub(crate) fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut settings = Self::default();
        for (name, value) in pairs {
            settings.set(name, value);
        }
        settings
    }

    fn set(&mut self, name: &str, value: &str) {
        let name = name.to_ascii_lowercase();
        match self.0.binary_search_by(|(known, _)| (**known).cmp(&name)) {
            Ok(at) => {
                if let Some(entry) = self.0.get_mut(at) {
                    entry.1 = value.into();
                }
            }
            Err(at) => self.0.insert(at, (name.into(), value.into())),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These, and where they say nothing, those of `below`: what the client asked for when it connected stays until
    /// it says otherwise, also after its RESET.
    pub(crate) fn over(self, below: &Self) -> Self {
        let mut merged = below.clone();
        for (name, value) in &self.0 {
            merged.set(name, value);
        }
        merged
    }
}

/// Whether a server that has `server`'s settings can be used as it is by a client that has `client`'s.
#[inline]
pub(crate) fn same(server: &Rc<Settings>, client: &Rc<Settings>) -> bool {
    Rc::ptr_eq(server, client) || server == client
}

/// The statement that turns a session with the settings `from` into one with `to`.
///
/// A role is given back first and taken last, so that what it may not set is set.
pub(crate) fn replay(from: &Settings, to: &Settings) -> String {
    const ROLE: &str = "role";
    let mut calls = Vec::new();
    if from.get(ROLE).is_some() {
        calls.push(set_config(ROLE, Some("none")));
    }
    let gone = from.0.iter().filter(|(name, _)| to.get(name).is_none() && **name != *ROLE);
    calls.extend(gone.map(|(name, _)| set_config(name, None)));
    let made = to.0.iter().filter(|(name, value)| from.get(name) != Some(&**value) && **name != *ROLE);
    calls.extend(made.map(|(name, value)| set_config(name, Some(value))));
    if let Some(role) = to.get(ROLE) {
        calls.push(set_config(ROLE, Some(role)));
    }
    format!("SELECT {}", calls.join(","))
}

/// NULL sets a setting back to what the session began with.
fn set_config(name: &str, value: Option<&str>) -> String {
    let value = value.map_or_else(|| "NULL".to_owned(), literal);
    format!("pg_catalog.set_config({},{value},false)", literal(name))
}

/// A text in a statement, whatever `standard_conforming_strings` is.
pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The statement that asks a server what the session keeps; `custom` are further settings to ask for by name.
pub(crate) fn probe(login: &str, custom: &[Box<str>]) -> String {
    let custom: Vec<String> = custom.iter().map(|name| literal(name)).collect();
    include_str!("../sql/session_state.sql")
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("{custom}", &custom.join(","))
        .replace("{login}", &literal(login))
}

impl SessionState {
    /// Takes in one DataRow's body of [`probe`]'s answer.
    pub(crate) fn row(&mut self, body: &[u8]) {
        match data_row(body).as_slice() {
            [Some("s"), Some(name), Some(value)] => self.settings.set(name, value),
            [Some("p"), Some(what), _] => self.pins.push((*what).into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_replayed() {
        let from = Settings::new([("role", "a"), ("TimeZone", "UTC"), ("work_mem", "64")]);
        let to = Settings::new([("timezone", "UTC"), ("app.user", "it's \\"), ("role", "b")]);
        assert_eq!(
            replay(&from, &to),
            "SELECT pg_catalog.set_config(E'role',E'none',false),pg_catalog.set_config(E'work_mem',NULL,false),\
             pg_catalog.set_config(E'app.user',E'it''s \\\\',false),pg_catalog.set_config(E'role',E'b',false)"
        );
    }

    #[test]
    fn startup_settings_stay_below() {
        let startup = Settings::new([("application_name", "x"), ("datestyle", "SQL")]);
        let merged = Settings::new([("datestyle", "ISO")]).over(&startup);
        assert_eq!(merged, Settings::new([("application_name", "x"), ("datestyle", "ISO")]));
    }
}
