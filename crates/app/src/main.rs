//! The `millrace` binary: reads the command line, wires the capabilities, prints.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod backup;
mod bench;
mod cli;
mod clone;
mod commands;
mod context;
mod control;
mod dumps;
mod explain;
mod findings;
mod in_place;
mod layout;
mod lock;
mod logging;
mod output;
mod platform;
mod programs;
mod recovered;
mod sow;
mod users;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use millrace_config::Environment;

use crate::{explain::Usage, output::Output};

/// The proxy's clients take a descriptor each, and the usual soft limit is 1,024. Where the system does not
/// allow more, what it has must do.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let environment = Environment::read();
    let output = Output::new(cli.global.json, environment.no_color);
    #[cfg(debug_assertions)]
    if let Some(text) = &cli.global.failpoint
        && let Err(error) = millrace_base::failpoint::arm(text)
    {
        output.note(format!("millrace: {error}"));
        return ExitCode::from(2);
    }
    raise_file_limit();
    match commands::run(cli, environment, output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let usage = error.downcast_ref::<Usage>().is_some();
            let text = explain::chain(error.as_ref());
            if output.json {
                let (message, hint) = match text.split_once("\n  hint: ") {
                    Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
                    None => (text, None),
                };
                let error = serde_json::json!({ "error": message, "hint": hint });
                output.note(error.to_string());
            } else {
                output.note(format!("{} {text}", output.red("millrace:")));
            }
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
