//! Errors for people: what, where, what to do.

use std::{error::Error, fmt};

use anyhow::anyhow;

/// One line of the error and its causes; a cause that repeats what was said is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// The error with its causes, and on a line of its own what to do.
pub(crate) fn explain(error: &dyn Error, hint: Option<String>) -> anyhow::Error {
    match hint {
        Some(hint) => anyhow!("{}\n  hint: {hint}", chain(error)),
        None => anyhow!("{}", chain(error)),
    }
}

/// `result.explained()?` where the error knows its own hint.
pub(crate) trait Explained<T> {
    fn explained(self) -> anyhow::Result<T>;
}

impl<T> Explained<T> for Result<T, millrace_pg::PgError> {
    fn explained(self) -> anyhow::Result<T> {
        self.map_err(|error| explain(&error, error.hint()))
    }
}

impl<T> Explained<T> for Result<T, millrace_pg::ServerError> {
    fn explained(self) -> anyhow::Result<T> {
        self.map_err(|error| explain(&error, error.hint()))
    }
}

impl<T> Explained<T> for Result<T, millrace_contract::QueryError> {
    fn explained(self) -> anyhow::Result<T> {
        self.map_err(|error| explain(&error, error.hint.clone()))
    }
}

/// The command was understood but used wrongly: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl fmt::Display for Nothing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot open the file")
        }
    }

    impl Error for Nothing {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&std::fmt::Error)
        }
    }

    #[test]
    fn causes_follow_and_the_hint_stands_alone() {
        let text = explain(&Nothing, Some("try another".into())).to_string();
        assert!(text.starts_with("cannot open the file: "), "{text}");
        assert!(text.ends_with("\n  hint: try another"), "{text}");
    }
}
