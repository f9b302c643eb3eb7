//! `millrace psql`: psql with the right address, certificate and password file.

use std::path::Path;

use anyhow::{Context, bail};
use millrace_base::files;
use millrace_pg::ConnectParams;

/// One line of libpq's password file; `:` and `\` are escaped (PostgreSQL manual, "The Password File").
pub(crate) fn pgpass_line(params: &ConnectParams) -> String {
    format!("{}{}\n", pgpass_subject(params), escape(params.password.reveal()))
}

/// What a line is about: all of it but the password.
fn pgpass_subject(params: &ConnectParams) -> String {
    format!("{}:{}:*:{}:", escape(&params.host), params.port, escape(&params.user))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:")
}

/// Runs psql in the foreground and returns its exit code.
pub(crate) async fn run(
    params: &ConnectParams,
    program: &Path,
    pgpass: &Path,
    ca: &Path,
    arguments: &[String],
) -> anyhow::Result<u8> {
    let line = pgpass_line(params);
    let old = std::fs::read_to_string(pgpass).unwrap_or_default();
    // libpq takes the first match: a password of before must not stand in front
    let subject = pgpass_subject(params);
    let mut lines: String =
        old.lines().filter(|old| !old.starts_with(&subject)).map(|old| format!("{old}\n")).collect();
    lines.push_str(&line);
    if lines != old {
        files::write_atomic(pgpass, lines.as_bytes(), 0o600)
            .with_context(|| format!("cannot write {}", pgpass.display()))?;
    }
    let conninfo = format!(
        "host={} port={} dbname={} user={} sslmode=verify-full sslrootcert={} passfile={} application_name=psql",
        params.host,
        params.port,
        quote(&params.database),
        quote(&params.user),
        quote(&ca.display().to_string()),
        quote(&pgpass.display().to_string()),
    );
    let mut child = match tokio::process::Command::new(program).arg(conninfo).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("psql was not found\n  hint: apt install postgresql-client")
        }
        Err(error) => return Err(error).context("cannot start psql"),
    };
    // psql handles Ctrl-C itself (it cancels the statement); we must only not die of it
    let mut interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let status = loop {
        tokio::select! {
            ended = child.wait() => break ended.context("cannot wait for psql")?,
            _ = interrupts.recv() => {}
        }
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// A value of a connection string (PostgreSQL manual, "Keyword/Value Connection Strings").
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use millrace_base::Secret;

    use super::*;

    #[test]
    fn separators_are_escaped() {
        let params = ConnectParams {
            host: "::1".into(),
            port: 5440,
            database: "d".into(),
            user: "u".into(),
            password: Secret::new("a:b\\c"),
            tls: None,
            application_name: String::new(),
        };
        assert_eq!(pgpass_line(&params), "\\:\\:1:5440:*:u:a\\:b\\\\c\n");
        assert_eq!(quote("it's"), "'it\\'s'");
    }
}
