//! `millrace.conf`: the settings that the platform decides, each with its reason beside it.

use std::fmt::Write;

/// One line of a server's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
    /// Why it is so, written above it; empty for none.
    pub why: String,
}

impl Setting {
    #[must_use]
    pub fn new(name: impl Into<String>, value: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into(), why: why.into() }
    }
}

/// The file's text. A later setting of the same name replaces an earlier one, as the server reads it.
#[must_use]
pub fn render(settings: &[Setting]) -> String {
    let mut text = String::from(
        "# Written by millrace at every start of this server: changes here are lost.\n\
         # Change the platform's own configuration instead.\n",
    );
    for setting in settings {
        text.push('\n');
        for line in setting.why.lines() {
            // writing into a String cannot fail
            let _written = writeln!(text, "# {line}");
        }
        let _written = writeln!(text, "{} = {}", setting.name, quote(&setting.value));
    }
    text
}

/// A value as the configuration file wants it (PostgreSQL manual, "Parameter Names and Values").
#[must_use]
pub fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// A value inside a connection string (`key='value'`).
#[must_use]
pub fn quote_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_reasons_kept() {
        let text = render(&[
            Setting::new("port", "5440", ""),
            Setting::new("primary_conninfo", r"host='a b' passfile='C:\x'", "where the log comes from\nsecond line"),
        ]);
        assert!(text.contains("\nport = '5440'\n"));
        assert!(text.contains(
            "# where the log comes from\n# second line\nprimary_conninfo = 'host=''a b'' passfile=''C:\\\\x'''\n"
        ));
    }
}
