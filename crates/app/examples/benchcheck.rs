//! The `millrace` binary: reads the command line, wires the capabilities, prints.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

#[path = "../src/bench/mod.rs"]
mod bench;
#[path = "../src/cli.rs"]
mod cli;
#[path = "../src/commands/mod.rs"]
mod commands;
#[path = "../src/context.rs"]
mod context;
#[path = "../src/control.rs"]
mod control;
#[path = "../src/explain.rs"]
mod explain;
#[path = "../src/findings.rs"]
mod findings;
#[path = "../src/layout.rs"]
mod layout;
#[path = "../src/lock.rs"]
mod lock;
#[path = "../src/logging.rs"]
mod logging;
#[path = "../src/output.rs"]
mod output;
#[path = "../src/platform/mod.rs"]
mod platform;
#[path = "../src/users.rs"]
mod users;
#[path = "../src/verify.rs"]
mod verify;

use std::process::ExitCode;

use clap::Parser;
use millrace_config::Environment;

use crate::{explain::Usage, output::Output};

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
    if let cli::Command::Bench(options) = &cli.command {
        let _ = logging::to_terminal(environment.log.as_deref());
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
        return match runtime.block_on(bench::run(options, output)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => { output.note(explain::chain(error.as_ref())); ExitCode::FAILURE }
        };
    }
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
