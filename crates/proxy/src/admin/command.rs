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
    Histograms,
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
    ("histograms", Show::Histograms),
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
    WaitClose(Option<String>),
    Kill(Option<String>),
    KillClient(i32),
    Disable(String),
    Enable(String),
    Reload,
}

impl AdminCommand {
    /// Whether it changes what the proxy does.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::Empty | Self::Show(_) | Self::Set | Self::WaitClose(_))
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
        ("wait_close", _) => Ok(AdminCommand::WaitClose(database())),
        ("kill", _) => Ok(AdminCommand::Kill(database())),
        ("kill_client", Some(id)) => match id.parse() {
            Ok(id) => Ok(AdminCommand::KillClient(id)),
            Err(_) => Err(format!("{id} is no client's id: SHOW CLIENTS has them")),
        },
        ("disable", Some(_)) => Ok(AdminCommand::Disable(database().unwrap_or_default())),
        ("enable", Some(_)) => Ok(AdminCommand::Enable(database().unwrap_or_default())),
        ("disable" | "enable" | "kill_client", None) => Err(format!("{verb} of what? name it behind the command")),
        ("reload", None) => Ok(AdminCommand::Reload),
        ("suspend", _) => Err("there is no SUSPEND: PAUSE holds statements back and keeps the clients".to_owned()),
        ("shutdown", _) => {
            Err("there is no SHUTDOWN: the proxy ends with its platform; KILL ends connections".to_owned())
        }
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
        assert_eq!(parse("KILL"), Ok(AdminCommand::Kill(None)));
        assert_eq!(parse("kill_client 65"), Ok(AdminCommand::KillClient(65)));
        assert_eq!(parse("Disable loans;"), Ok(AdminCommand::Disable("loans".to_owned())));
        assert_eq!(parse(" ; "), Ok(AdminCommand::Empty));
        for bad in [
            "show everything",
            "drop table loans",
            "pause one two",
            "select 1",
            "disable",
            "kill_client x",
            "reload now",
            "shutdown",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
