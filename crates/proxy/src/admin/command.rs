//! The console's words.

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Help,
    Version,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Pools,
    Clients,
    Servers,
    Databases,
    Users,
    Lists,
    Config,
    State,
}

/// By their names in the dialect.
pub(super) const SHOWS: &[(&str, Show)] = &[
    ("help", Show::Help),
    ("version", Show::Version),
    ("stats", Show::Stats),
    ("stats_totals", Show::StatsTotals),
    ("stats_averages", Show::StatsAverages),
    ("totals", Show::Totals),
    ("pools", Show::Pools),
    ("clients", Show::Clients),
    ("servers", Show::Servers),
    ("databases", Show::Databases),
    ("users", Show::Users),
    ("lists", Show::Lists),
    ("config", Show::Config),
    ("state", Show::State),
];

/// One command; of a database, or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AdminCommand {
    Empty,
    Show(Show),
    /// Drivers set things when they connect; nothing here depends on them.
    Set,
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
}

impl AdminCommand {
    /// Whether it changes what the proxy does.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Self::Pause(_) | Self::Resume(_) | Self::Reconnect(_))
    }
}

/// Reads a command; the error is for the client.
pub(super) fn parse(text: &str) -> Result<AdminCommand, String> {
    let text = text.trim().trim_end_matches(';').trim_end();
    let mut words = text.split_whitespace();
    let Some(verb) = words.next() else { return Ok(AdminCommand::Empty) };
    let argument = words.next();
    if words.next().is_some() && !verb.eq_ignore_ascii_case("set") {
        return Err(format!("unsupported command: {text}"));
    }
    let database = || argument.map(|name| name.trim_matches('"').to_owned());
    match (verb.to_ascii_lowercase().as_str(), argument) {
        ("set", _) => Ok(AdminCommand::Set),
        ("show", Some(what)) => {
            let known = SHOWS.iter().find(|(name, _)| name.eq_ignore_ascii_case(what));
            known.map(|(_, show)| AdminCommand::Show(*show)).ok_or_else(|| format!("there is no SHOW {what}"))
        }
        ("show", None) => Ok(AdminCommand::Show(Show::Help)),
        ("pause", _) => Ok(AdminCommand::Pause(database())),
        ("resume", _) => Ok(AdminCommand::Resume(database())),
        ("reconnect", _) => Ok(AdminCommand::Reconnect(database())),
        _ => Err(format!("unsupported command: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_people_write_them() {
        assert_eq!(parse(" show  Pools ; "), Ok(AdminCommand::Show(Show::Pools)));
        assert_eq!(parse("SHOW"), Ok(AdminCommand::Show(Show::Help)));
        assert_eq!(parse("PAUSE;"), Ok(AdminCommand::Pause(None)));
        assert_eq!(parse("resume \"Loans\""), Ok(AdminCommand::Resume(Some("Loans".to_owned()))));
        assert_eq!(parse("SET extra_float_digits = 3"), Ok(AdminCommand::Set));
        assert_eq!(parse(" ; "), Ok(AdminCommand::Empty));
        for bad in ["show everything", "drop table loans", "pause one two", "select 1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
