//! Rules on the text of one file: its header, its length, what must not be in it.

use super::Finding;

/// Longer files fail: look for the seam.
const LINES_MAX: usize = 700;
/// Longer files are named.
const LINES_LONG: usize = 550;

/// What may stand nowhere, and why. A line that says `tidy: allow` is let through.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("\"reso", "lved\": \"http"), "a lockfile names hashes, not where one machine fetched from"),
    (concat!("index", "-url"), "which registry is used is the machine's business"),
    (concat!("regis", "try=http"), "which registry is used is the machine's business"),
];

/// What may not stand in Rust.
const FORBIDDEN_IN_RUST: &[(&str, &str)] = &[
    (concat!("to", "do!("), "unfinished code is not committed"),
    (concat!("unimple", "mented!("), "unfinished code is not committed"),
    (concat!("#[ig", "nore"), "a test that does not run tells nothing"),
    (concat!("thread::sl", "eep("), "wait for a condition with a deadline"),
    (concat!("process::ex", "it("), "return from main, so that what is open is closed"),
];

/// Everything wrong with one file.
pub(crate) fn check(path: &str, content: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut wrong = |line: usize, message: String| findings.push(Finding { path: path.to_owned(), line, message });
    let rust = path.ends_with(".rs");
    if rust && !content.starts_with("//! ") {
        wrong(1, "a file opens with `//!`: purpose, invariants, non-goals".to_owned());
    }
    let of_a_crate = path.starts_with("crates/") && !path.contains("/tests/");
    if of_a_crate && path.ends_with(".sql") && !content.starts_with("--") {
        wrong(1, "a statement's file opens with a comment that says what it is for".to_owned());
    }
    if rust && content.lines().count() > LINES_MAX {
        wrong(0, format!("{} lines, more than {LINES_MAX}: look for the seam", content.lines().count()));
    }
    for (number, line) in content.lines().enumerate() {
        if line.contains("tidy: allow") {
            continue;
        }
        let patterns = FORBIDDEN.iter().chain(FORBIDDEN_IN_RUST.iter().filter(|_| rust));
        for (pattern, why) in patterns.filter(|(pattern, _)| line.contains(pattern)) {
            wrong(number + 1, format!("`{pattern}`: {why}"));
        }
    }
    if path.starts_with("crates/") && path.ends_with("Cargo.toml") && !content.contains("[lints]\nworkspace = true") {
        wrong(0, "the workspace's lints are not switched on: [lints] workspace = true".to_owned());
    }
    findings
}

/// A word about a Rust file that grows long.
pub(crate) fn long(path: &str, content: &str) -> Option<String> {
    let lines = content.lines().count();
    (path.ends_with(".rs") && lines > LINES_LONG && lines <= LINES_MAX).then(|| format!("{path}, {lines} lines"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, content: &str) -> Vec<(usize, String)> {
        check(path, content).into_iter().map(|f| (f.line, f.message)).collect()
    }

    #[test]
    fn a_good_file_passes() {
        assert_eq!(messages("crates/a/src/lib.rs", "//! Purpose.\nfn a() {}\n"), []);
        assert_eq!(messages("crates/a/sql/a.sql", "-- Purpose.\nSELECT 1;\n"), []);
        assert_eq!(messages("README.md", "text"), []);
    }

    #[test]
    fn headers_are_asked_for() {
        assert_eq!(messages("crates/a/src/lib.rs", "fn a() {}\n").len(), 1);
        assert_eq!(messages("crates/a/sql/a.sql", "SELECT 1;\n").len(), 1);
        assert_eq!(messages("crates/a/Cargo.toml", "[package]\n").len(), 1);
    }

    #[test]
    fn long_files_fail() {
        let content = |lines: usize| format!("//! Purpose.\n{}", "\n".repeat(lines - 1));
        assert_eq!(messages("a.rs", &content(LINES_MAX)), []);
        assert_eq!(messages("a.rs", &content(LINES_MAX + 1)).len(), 1);
        assert!(long("a.rs", &content(LINES_LONG + 1)).is_some());
    }

    #[test]
    fn forbidden_text_is_found_at_its_line() {
        for (pattern, _) in FORBIDDEN {
            assert_eq!(messages("docs/a.md", &format!("one\n{pattern}"))[0].0, 2, "{pattern}");
            assert_eq!(messages("docs/a.md", &format!("{pattern} tidy: allow")), []);
        }
        for (pattern, _) in FORBIDDEN_IN_RUST {
            assert_eq!(messages("a.rs", &format!("//! A.\n{pattern}"))[0].0, 2, "{pattern}");
            assert_eq!(messages("a.md", pattern), []);
        }
    }
}
