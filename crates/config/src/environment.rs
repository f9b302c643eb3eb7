//! The environment of the process: read once, here, and passed down.

use std::{env, ffi::OsString, path::PathBuf};

/// What the program takes from its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `MILLRACE_DIR`: the platform's folder where `--dir` is not given.
    pub dir: Option<PathBuf>,
    /// `MILLRACE_LOG`: the log filter, as in `info,millrace_capture=debug`.
    pub log: Option<String>,
    /// `NO_COLOR` is set and not empty (<https://no-color.org>), or the terminal is `dumb`.
    pub no_color: bool,
    /// The folders of `PATH`.
    pub path: Vec<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's environment.
    #[must_use]
    pub fn read() -> Self {
        Self::from_lookup(|name| env::var_os(name))
    }

    /// From any source of variables.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| lookup(name).filter(|v| !v.is_empty());
        Self {
            dir: set("MILLRACE_DIR").map(PathBuf::from),
            log: set("MILLRACE_LOG").and_then(|v| v.into_string().ok()),
            no_color: set("NO_COLOR").is_some() || set("TERM").is_some_and(|t| t == "dumb"),
            path: lookup("PATH").map(|p| env::split_paths(&p).collect()).unwrap_or_default(),
            home: set("HOME").map(PathBuf::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variables_are_unset() {
        let environment = Environment::from_lookup(|name| match name {
            "MILLRACE_DIR" | "NO_COLOR" => Some("".into()),
            "PATH" => Some("/usr/bin:/bin".into()),
            _ => None,
        });
        assert_eq!(environment.dir, None);
        assert!(!environment.no_color);
        assert_eq!(environment.path, [PathBuf::from("/usr/bin"), PathBuf::from("/bin")]);
    }

    #[test]
    fn colour_is_refused_by_either_variable() {
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            assert!(Environment::from_lookup(|n| (n == name).then(|| value.into())).no_color);
        }
    }
}
