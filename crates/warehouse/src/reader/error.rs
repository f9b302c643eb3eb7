//! DuckDB's errors as PostgreSQL's: SQLSTATE (manual, appendix A), primary line, hint.
//!
//! DuckDB gives no codes, only texts with a class before the first colon; the patterns below are
//! those of 1.5 and are tested against the real engine. What is not recognised is `XX000`.

use millrace_contract::QueryError;

use super::watch::Cause;
use crate::error::message;

pub(super) fn error(sqlstate: &'static str, message: impl Into<String>) -> QueryError {
    QueryError { sqlstate, message: message.into(), hint: None }
}

pub(super) fn with_hint(sqlstate: &'static str, message: impl Into<String>, hint: impl Into<String>) -> QueryError {
    QueryError { sqlstate, message: message.into(), hint: Some(hint.into()) }
}

/// Refuses a statement that would change something.
pub(super) fn read_only(verb: &str) -> QueryError {
    with_hint(
        "25006",
        format!("cannot execute {verb}: the warehouse is read-only"),
        "change the data on the primary; it arrives here by itself",
    )
}

/// Why an interrupted statement ended.
pub(super) fn interrupted(cause: Option<Cause>) -> QueryError {
    match cause {
        Some(Cause::Deadline) => with_hint(
            "57014",
            "canceling statement due to statement timeout",
            "narrow the statement, or raise statement_timeout",
        ),
        Some(Cause::Shutdown) => error("57P01", "terminating statement because the warehouse shuts down"),
        Some(Cause::Gone) | None => error("57014", "canceling statement due to user request"),
    }
}

/// Translates an error of the engine.
pub(super) fn translate(source: &duckdb::Error, cause: Option<Cause>) -> QueryError {
    if let duckdb::Error::InvalidParameterCount(given, wanted) = source {
        return error("08P01", format!("the statement needs {wanted} parameters, {given} were given"));
    }
    from_text(&message(source), cause)
}

/// Translates a message of the engine.
pub(super) fn from_text(text: &str, cause: Option<Cause>) -> QueryError {
    let first = text.lines().next().unwrap_or_default();
    let (class, rest) = first.split_once(": ").unwrap_or(("", first));
    let hint = text
        .lines()
        .skip(1)
        .find(|line| {
            line.starts_with("Did you mean") || line.starts_with("Candidate bindings") || line.starts_with("Either add")
        })
        .map(str::to_owned);
    if rest.contains("expression depth") {
        return error("54001", "the statement is nested too deeply");
    }
    let (sqlstate, message) = match class {
        "INTERRUPT Error" | "Interrupt Error" => return interrupted(cause),
        "Catalog Error" => catalog(rest),
        "Binder Error" => binder(rest),
        "Parser Error" | "Syntax Error" => ("42601", lower_first(rest)),
        "Conversion Error" => (conversion(rest), lower_first(rest)),
        "Out of Range Error" => (range(rest), lower_first(rest)),
        "Invalid Input Error" => (input(rest), lower_first(rest)),
        "Permission Error" => ("42501", lower_first(rest)),
        "Not implemented Error" => ("0A000", lower_first(rest)),
        "Out of Memory Error" => {
            return with_hint(
                "53200",
                "the statement needs more memory than the warehouse may use",
                "narrow it, or raise [warehouse] memory_limit",
            );
        }
        "TransactionContext Error" if rest.contains("read-only") => ("25006", "the warehouse is read-only".to_owned()),
        "TransactionContext Error" => ("25P02", lower_first(rest)),
        "IO Error" => ("58030", lower_first(rest)),
        "Constraint Error" => ("23000", lower_first(rest)),
        _ => ("XX000", lower_first(first)),
    };
    QueryError { sqlstate, message, hint }
}

fn catalog(rest: &str) -> (&'static str, String) {
    let name = between(rest, "with name ", " does not exist").unwrap_or_default().trim_matches('"');
    if !rest.contains("does not exist") || name.is_empty() {
        return ("42704", lower_first(rest));
    }
    if rest.starts_with("Table with name") || rest.starts_with("View with name") {
        ("42P01", format!("relation \"{name}\" does not exist"))
    } else if rest.contains("Function with name") || rest.starts_with("Macro") {
        ("42883", format!("function {name} does not exist"))
    } else if rest.starts_with("Schema with name") {
        ("3F000", format!("schema \"{name}\" does not exist"))
    } else if rest.starts_with("Type with name") {
        ("42704", format!("type \"{name}\" does not exist"))
    } else {
        ("42704", lower_first(rest))
    }
}

fn binder(rest: &str) -> (&'static str, String) {
    if let Some(name) = between(rest, "Referenced column \"", "\"") {
        return ("42703", format!("column \"{name}\" does not exist"));
    }
    if let Some(name) = between(rest, "Referenced table \"", "\"") {
        return ("42P01", format!("missing FROM-clause entry for table \"{name}\""));
    }
    if rest.contains("does not have a column named") {
        return ("42703", lower_first(rest));
    }
    if rest.contains("GROUP BY") || rest.contains("aggregates") || rest.contains("aggregate function") {
        return ("42803", lower_first(rest));
    }
    if rest.starts_with("Ambiguous reference") {
        return ("42702", lower_first(rest));
    }
    if rest.contains("No function matches") || rest.contains("best candidate") {
        return ("42883", lower_first(rest));
    }
    if rest.contains("Cannot compare") || rest.contains("Cannot mix") || rest.contains("Unimplemented type for cast") {
        return ("42804", lower_first(rest));
    }
    if rest.contains("Catalog \"") || rest.contains("schema") {
        return ("3F000", lower_first(rest));
    }
    ("42601", lower_first(rest))
}

fn conversion(rest: &str) -> &'static str {
    if rest.contains("field value out of range") {
        "22008"
    } else if rest.contains("field format") || rest.contains("Could not parse string") {
        "22007"
    } else if rest.contains("out of range") {
        "22003"
    } else {
        "22P02"
    }
}

fn range(rest: &str) -> &'static str {
    if rest.contains("square root") {
        "2201F"
    } else if rest.contains("logarithm") {
        "2201E"
    } else {
        "22003"
    }
}

fn input(rest: &str) -> &'static str {
    if rest.contains("division by zero") {
        "22012"
    } else if rest.contains("More than one row returned by a subquery") {
        "21000"
    } else if rest.contains("prepared statement parameters") {
        "08P01"
    } else if rest.contains("Could not parse string") {
        "22007"
    } else {
        "22023"
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inside, _)| inside)
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if first.is_uppercase() && !second.is_uppercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}
