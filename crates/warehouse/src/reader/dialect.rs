//! PostgreSQL's SQL as DuckDB's.
//!
//! A statement is parsed in PostgreSQL's grammar, found to be one query that only reads, rewritten where the
//! two engines differ, and written out again. What is rewritten and what still differs is listed for users in
//! `docs/sql-dialect.md`; the parity suite compares both engines.
//! Invariants: pure (no engine is asked); nothing but a query or an EXPLAIN of one comes out.

mod functions;
mod names;
pub(super) mod params;
mod rewrite;
mod to_char;

use std::ops::ControlFlow;

use millrace_contract::{QueryError, Value};
use sqlparser::{
    ast::{Query, SetExpr, Statement, VisitMut},
    dialect::PostgreSqlDialect,
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Token, TokenWithSpan, Tokenizer},
};

use super::error::{error, read_only, with_hint};

/// Deeper nesting is refused, so that no statement can exhaust the stack.
const DEPTH_MAX: usize = 60;

/// Longer statements are refused.
const LENGTH_MAX: usize = 4 << 20;

/// Tokens of one expression at one level of parentheses: `1 + 1 + …` is a tree as deep as it is long, and the
/// parser's own limit does not see it.
const CHAIN_TOKENS_MAX: usize = 6_000;

/// Members of one chain of UNION, EXCEPT and INTERSECT, for the same reason.
const SET_OPERATIONS_MAX: usize = 500;

/// A statement as DuckDB takes it.
#[derive(Debug, Clone)]
pub(super) struct Translated {
    pub(super) sql: String,
    params: Vec<params::Param>,
    /// EXPLAIN has fixed columns.
    explain: bool,
}

impl Translated {
    /// Arrays among the parameters, from PostgreSQL's notation to the engine's.
    pub(super) fn parameters(&self, mut values: Vec<Value>) -> Vec<Value> {
        for (value, param) in values.iter_mut().zip(&self.params) {
            if param.is_list
                && let Value::Text(text) = value
                && let Some(elements) = array_elements(text)
            {
                let quoted = |element: &String| format!("\"{}\"", element.replace('\\', "\\\\").replace('"', "\\\""));
                let items: Vec<String> =
                    elements.iter().map(|e| e.as_ref().map_or_else(|| "NULL".to_owned(), quoted)).collect();
                *value = Value::Text(format!("[{}]", items.join(",")).into());
            }
        }
        values
    }
}

/// Translates one statement; `catalog` is the name under which DuckDB has the warehouse's file open.
///
/// # Errors
/// A syntax error, several statements, a statement that is not a query, a function that readers may not use.
pub(super) fn translate(sql: &str, catalog: &str) -> Result<Translated, QueryError> {
    if sql.len() > LENGTH_MAX {
        return Err(error("54000", format!("a statement may have {LENGTH_MAX} bytes at most")));
    }
    let dialect = PostgreSqlDialect {};
    let parsed = Tokenizer::new(&dialect, sql).tokenize_with_location().map_err(ParserError::from).and_then(|tokens| {
        if is_too_long_a_chain(&tokens) {
            return Err(ParserError::RecursionLimitExceeded);
        }
        Parser::new(&dialect).with_recursion_limit(DEPTH_MAX).with_tokens_with_locations(tokens).parse_statements()
    });
    let mut statements = match parsed {
        Ok(statements) => statements,
        Err(source) => return Err(syntax(sql, &source)),
    };
    let Some(statement) = statements.pop() else {
        return Err(error("42601", "the statement is empty"));
    };
    if !statements.is_empty() {
        return Err(error("42601", "cannot insert multiple commands into a prepared statement"));
    }
    let (prefix, mut query) = match statement {
        Statement::Query(query) => ("", query),
        Statement::Explain { analyze, statement, .. } => match *statement {
            Statement::Query(query) => (if analyze { "EXPLAIN ANALYZE " } else { "EXPLAIN " }, query),
            other => return Err(refuse(&other.to_string())),
        },
        other => return Err(refuse(&other.to_string())),
    };
    reads_only(&query)?;
    let mut rewriter = rewrite::Rewriter::new(catalog);
    if let ControlFlow::Break(refused) = query.visit(&mut rewriter) {
        return Err(refused);
    }
    Ok(Translated { sql: format!("{prefix}{query}"), params: rewriter.params.0, explain: !prefix.is_empty() })
}

fn is_too_long_a_chain(tokens: &[TokenWithSpan]) -> bool {
    let mut levels = vec![0_usize];
    let mut set_operations = 0;
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => {}
            Token::LParen | Token::LBracket => levels.push(0),
            Token::RParen | Token::RBracket => {
                levels.pop();
                if levels.is_empty() {
                    levels.push(0);
                }
            }
            Token::Comma | Token::SemiColon => {
                if let Some(level) = levels.last_mut() {
                    *level = 0;
                }
            }
            token => {
                if let Token::Word(word) = token
                    && matches!(word.keyword, Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT)
                {
                    set_operations += 1;
                }
                if let Some(level) = levels.last_mut() {
                    *level += 1;
                    if *level > CHAIN_TOKENS_MAX || set_operations > SET_OPERATIONS_MAX {
                        return true;
                    }
                }
            }
        }
    }
    false
}

/// The outermost query only reads; inner ones are looked at by the rewriter.
fn reads_only(query: &Query) -> Result<(), QueryError> {
    if let Some(lock) = query.locks.first() {
        return Err(read_only(&format!("SELECT {lock}")));
    }
    body_reads_only(&query.body)
}

fn body_reads_only(body: &SetExpr) -> Result<(), QueryError> {
    match body {
        SetExpr::Select(select) if select.into.is_some() => Err(read_only("SELECT INTO")),
        SetExpr::Select(_) | SetExpr::Values(_) | SetExpr::Table(_) => Ok(()),
        SetExpr::Query(query) => reads_only(query),
        SetExpr::SetOperation { left, right, .. } => body_reads_only(left).and_then(|()| body_reads_only(right)),
        SetExpr::Insert(_) => Err(read_only("INSERT")),
        SetExpr::Update(_) => Err(read_only("UPDATE")),
        SetExpr::Delete(_) => Err(read_only("DELETE")),
        SetExpr::Merge(_) => Err(read_only("MERGE")),
    }
}

/// Statements that PostgreSQL has and that change something.
const WRITING: [&str; 22] = [
    "INSERT", "UPDATE", "DELETE", "MERGE", "CREATE", "ALTER", "DROP", "TRUNCATE", "GRANT", "REVOKE", "COMMENT",
    "VACUUM", "ANALYZE", "REINDEX", "CLUSTER", "REFRESH", "COPY", "CALL", "DO", "LOCK", "IMPORT", "SECURITY",
];

/// Statements of DuckDB that PostgreSQL does not have, or that would change the engine.
const FORBIDDEN: [&str; 12] = [
    "ATTACH",
    "DETACH",
    "INSTALL",
    "LOAD",
    "PRAGMA",
    "USE",
    "EXPORT",
    "CHECKPOINT",
    "SET",
    "RESET",
    "UPDATE EXTENSIONS",
    "FORCE",
];

fn refuse(sql: &str) -> QueryError {
    let verb = first_word(sql);
    if FORBIDDEN.contains(&verb.as_str()) {
        return with_hint("42501", format!("{verb} is not allowed here"), "the warehouse answers queries only");
    }
    if WRITING.contains(&verb.as_str()) {
        return read_only(&verb);
    }
    with_hint(
        "0A000",
        format!("{verb} is not supported"),
        "the warehouse answers queries: SELECT, VALUES, TABLE, WITH, EXPLAIN",
    )
}

fn syntax(sql: &str, source: &ParserError) -> QueryError {
    let verb = first_word(sql);
    if WRITING.contains(&verb.as_str()) || FORBIDDEN.contains(&verb.as_str()) {
        return refuse(sql);
    }
    match source {
        ParserError::RecursionLimitExceeded => error("54001", "the statement is nested too deeply"),
        ParserError::ParserError(text) | ParserError::TokenizerError(text) => {
            error("42601", format!("syntax error: {text}"))
        }
    }
}

/// The elements of an array in PostgreSQL's text form, one dimension; `None` if it is not one.
fn array_elements(text: &str) -> Option<Vec<Option<String>>> {
    let inside = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    let mut chars = inside.chars().peekable();
    while chars.peek().is_some() {
        let mut element = String::new();
        let mut quoted = false;
        loop {
            match chars.next() {
                None | Some(',') => break,
                Some('{' | '}') => return None,
                Some('"') => {
                    quoted = true;
                    loop {
                        match chars.next()? {
                            '"' => break,
                            '\\' => element.push(chars.next()?),
                            c => element.push(c),
                        }
                    }
                }
                Some('\\') => element.push(chars.next()?),
                Some(c) => element.push(c),
            }
        }
        let is_null = !quoted && element.eq_ignore_ascii_case("null");
        elements.push((!is_null).then_some(element));
    }
    Some(elements)
}

/// The first keyword, past white space, comments and parentheses.
fn first_word(sql: &str) -> String {
    let mut rest = sql.trim_start();
    loop {
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after).trim_start();
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after).trim_start();
        } else if let Some(inside) = rest.strip_prefix('(') {
            rest = inside.trim_start();
        } else {
            break;
        }
    }
    rest.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_uppercase()
}
