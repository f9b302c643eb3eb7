//! Developer tasks: `cargo xtask ci` is everything that must hold, `cargo xtask tidy` the house rules.
//!
//! The same on a desk and on a build machine; nothing here needs a network.

mod ci;
mod tidy;

use std::{env, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

const USAGE: &str = "usage: cargo xtask ci | tidy\n  ci    format, tidy, clippy, docs, tests: all run, even if one fails\n  tidy  crate edges, file lengths, headers, forbidden text, links of pages\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["ci"] => root().and_then(|root| ci::run(&root)),
        ["tidy"] => root().and_then(|root| tidy::run(&root)),
        _ => {
            say(USAGE.trim_end());
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The repository's folder.
fn root() -> anyhow::Result<PathBuf> {
    let crate_folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    crate_folder.ancestors().nth(2).map(PathBuf::from).context("the crate is not where it belongs")
}

/// One line for the person who waits.
fn say(line: &str) {
    let mut stderr = std::io::stderr().lock();
    // nobody is left to tell if the terminal is gone
    let _gone = writeln!(stderr, "{line}");
}
