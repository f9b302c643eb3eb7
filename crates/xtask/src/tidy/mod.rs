//! House rules that no compiler checks.
//!
//! Each rule is a pure function from what it looks at to findings; only [`run`] touches the disk.

mod edges;
mod links;
mod text;

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::say;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Relative to the repository.
    pub(crate) path: String,
    /// From 1; 0 for the file as a whole.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Checks the repository.
///
/// # Errors
/// If a rule is broken; each finding is printed.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let files = tracked(root)?;
    let mut findings = edges::check(&metadata(root)?);
    for (path, content) in &files {
        findings.extend(text::check(path, content));
    }
    findings.extend(links::check(&files));
    for warning in files.iter().filter_map(|(path, content)| text::long(path, content)) {
        say(&format!("    long: {warning}"));
    }
    findings.sort();
    for finding in &findings {
        say(&finding.to_string());
    }
    if !findings.is_empty() {
        bail!("{} broken rules", findings.len());
    }
    Ok(())
}

/// Every text file that is or would be committed, by path.
fn tracked(root: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listing = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files = BTreeMap::new();
    for path in listing.split('\0').filter(|p| !p.is_empty()) {
        // a file deleted but still in the index is read by nobody; a picture is not text
        if let Ok(Ok(text)) = fs::read(root.join(path)).map(String::from_utf8) {
            files.insert(path.to_owned(), text);
        }
    }
    Ok(files)
}

fn metadata(root: &Path) -> anyhow::Result<edges::Metadata> {
    let output = Command::new("cargo")
        .current_dir(root)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")
}
