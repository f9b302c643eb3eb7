//! Everything that must hold, in one go.
//!
//! Every step runs even if one before it failed, so that one run tells all; the tests come last,
//! so that their summary closes the output.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, bail};

use crate::{say, tidy};

const CLIPPY: &[&str] = &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
const DOC: &[&str] = &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
const TEST: &[&str] = &["nextest", "run", "--workspace", "--no-fail-fast"];

/// Runs all steps.
///
/// # Errors
/// Naming the steps that failed.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    type Step = fn(&Path) -> anyhow::Result<()>;
    let steps: [(&str, Step); 5] = [
        ("format", |root| cargo(root, &["fmt", "--all", "--", "--check"], &[])),
        ("tidy", tidy::run),
        ("clippy", |root| cargo(root, CLIPPY, &[])),
        ("docs", |root| cargo(root, DOC, &[("RUSTDOCFLAGS", "-D warnings")])),
        ("tests", |root| cargo(root, TEST, &[])),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        say(&format!("==> {name}"));
        let start = Instant::now();
        match step(root) {
            Ok(()) if name == "tests" => {}
            Ok(()) => say(&format!("    {name}: good, {} s", start.elapsed().as_secs())),
            Err(error) => {
                say(&format!("    {name}: {error:#}"));
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    // what `cargo run` told this program: build scripts that look at it would think that something changed
    let set_by_us = |name: &str| root.join(".deps/duckdb").as_os_str() == std::env::var_os(name).unwrap_or_default();
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let told = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_");
        if told || text == "DUCKDB_LIB_DIR" && set_by_us(&text) {
            command.env_remove(&name);
        }
    }
    let status = command
        .current_dir(root)
        .args(arguments)
        .envs(environment.iter().copied())
        .status()
        .with_context(|| format!("cannot run cargo {}", arguments.join(" ")))?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
