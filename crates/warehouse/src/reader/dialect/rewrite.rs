//! The walk over a parsed query that makes it DuckDB's, and refuses what is not for readers.

use std::ops::ControlFlow;

use millrace_contract::QueryError;
use sqlparser::ast::{
    BinaryOperator, DataType, Expr, FunctionArgumentClause, FunctionArguments, Ident, ObjectName, ObjectNamePart,
    OrderByExpr, OrderByKind, Query, SetExpr, TableAlias, TableAliasColumnDef, TableFactor, Value, VisitorMut,
    WindowType,
};

use super::{
    functions::{self, plain_name, quote, raw},
    names::{is_value_function, name_columns},
    params::{Params, cast_type},
};
use crate::reader::{catalog, error::error};

pub(super) struct Rewriter<'a> {
    catalog: &'a str,
    pub(super) params: Params,
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(catalog: &'a str) -> Self {
        Self { catalog, params: Params::default() }
    }
}

impl VisitorMut for Rewriter<'_> {
    type Break = QueryError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<QueryError> {
        if let Err(refused) = super::reads_only(query) {
            return ControlFlow::Break(refused);
        }
        name_body(&mut query.body);
        if let Some(order_by) = &mut query.order_by
            && let OrderByKind::Expressions(exprs) = &mut order_by.kind
        {
            order_nulls(exprs);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<QueryError> {
        self.params.compared(query);
        if let Err(refused) = name_values(query) {
            return ControlFlow::Break(refused);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<QueryError> {
        match relation(factor, self.catalog) {
            Ok(()) => ControlFlow::Continue(()),
            Err(refused) => ControlFlow::Break(refused),
        }
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<QueryError> {
        match expr {
            Expr::Value(_) => {
                if let Some(number) = Params::number(expr) {
                    self.params.met(number);
                }
            }
            Expr::Cast { expr: inner, data_type, .. } => self.params.known(inner, cast_type(data_type)),
            Expr::Function(function) => order_nulls_in(function),
            Expr::AnyOp { right, .. } | Expr::AllOp { right, .. } => self.params.is_list(right),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<QueryError> {
        match expression(expr) {
            Ok(Some(new)) => *expr = new,
            Ok(None) => {}
            Err(refused) => return ControlFlow::Break(refused),
        }
        ControlFlow::Continue(())
    }
}

fn name_body(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => name_columns(select),
        SetExpr::SetOperation { left, right, .. } => {
            name_body(left);
            name_body(right);
        }
        _ => {}
    }
}

/// VALUES has columns `column1`, `column2`, …
fn name_values(query: &mut Query) -> Result<(), QueryError> {
    let SetExpr::Values(values) = query.body.as_ref() else { return Ok(()) };
    let columns: Vec<String> = (1..=values.rows.first().map_or(0, Vec::len)).map(|n| format!("column{n}")).collect();
    let text = format!("SELECT * FROM ({values}) AS \"*VALUES*\"({})", columns.join(", "));
    *query.body = SetExpr::Select(Box::new(raw_select(text)?));
    Ok(())
}

/// A select that is parsed, for places that take no raw text.
fn raw_select(text: String) -> Result<sqlparser::ast::Select, QueryError> {
    let parsed = sqlparser::parser::Parser::parse_sql(&sqlparser::dialect::PostgreSqlDialect {}, &text);
    match parsed.ok().and_then(|mut statements| statements.pop()) {
        Some(sqlparser::ast::Statement::Query(query)) => match *query.body {
            SetExpr::Select(select) => Ok(*select),
            _ => Err(error("XX000", "a rewritten VALUES is no SELECT")),
        },
        _ => Err(error("0A000", "VALUES of this kind are not supported")),
    }
}

/// Nulls are larger than all else in PostgreSQL.
fn order_nulls(exprs: &mut [OrderByExpr]) {
    for expr in exprs {
        if expr.options.nulls_first.is_none() {
            expr.options.nulls_first = Some(expr.options.asc == Some(false));
        }
    }
}

fn order_nulls_in(function: &mut sqlparser::ast::Function) {
    if let Some(WindowType::WindowSpec(window)) = &mut function.over {
        order_nulls(&mut window.order_by);
    }
    if let FunctionArguments::List(list) = &mut function.args {
        for clause in &mut list.clauses {
            if let FunctionArgumentClause::OrderBy(exprs) = clause {
                order_nulls(exprs);
            }
        }
    }
}

/// Tables and functions in FROM.
fn relation(factor: &mut TableFactor, catalog: &str) -> Result<(), QueryError> {
    match factor {
        TableFactor::Table { name, args: None, alias, .. } => table(name, alias, catalog),
        TableFactor::Table { name, alias, args: Some(_), .. } | TableFactor::Function { name, alias, .. } => {
            let function = functions::table_function(name)?;
            let new = match function.as_str() {
                "jsonb_each" => "json_each",
                "pg_get_keywords" => "mr_pg_get_keywords",
                other => other,
            };
            *name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(new))]);
            if matches!(function.as_str(), "generate_series" | "unnest" | "range") {
                column_of(alias, &function);
            }
            Ok(())
        }
        TableFactor::UNNEST { alias, .. } => {
            column_of(alias, "unnest");
            Ok(())
        }
        TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } => Ok(()),
        other => Err(error("0A000", format!("not supported in FROM: {other}"))),
    }
}

/// The single column of a function in FROM is called as its table is.
fn column_of(alias: &mut Option<TableAlias>, function: &str) {
    let alias = alias.get_or_insert_with(|| TableAlias { name: Ident::new(function), columns: Vec::new() });
    if alias.columns.is_empty() {
        alias.columns.push(TableAliasColumnDef { name: alias.name.clone(), data_type: None });
    }
}

fn table(name: &mut ObjectName, alias: &mut Option<TableAlias>, catalog: &str) -> Result<(), QueryError> {
    let mut parts = Vec::new();
    for part in &name.0 {
        match part.as_ident() {
            Some(ident) if ident.quote_style != Some('\'') => parts.push(ident.clone()),
            _ => return Err(error("42601", format!("{name} is not a table"))),
        }
    }
    if parts.len() == 3 {
        let database = parts.remove(0).value;
        if !database.eq_ignore_ascii_case(catalog::DATABASE) && !database.eq_ignore_ascii_case(catalog) {
            return Err(error("0A000", format!("cross-database references are not implemented: {name}")));
        }
    }
    let lower: Vec<String> = parts.iter().map(|ident| ident.value.to_lowercase()).collect();
    let shadow = match lower.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["information_schema", table] => catalog::information_schema(table),
        ["pg_catalog", table] => Some(
            catalog::pg_catalog(table)
                .ok_or_else(|| error("42P01", format!("relation \"pg_catalog.{table}\" does not exist")))?,
        ),
        [table] => catalog::pg_catalog(table),
        [_, _] => None,
        _ => return Err(error("42601", format!("improper qualified name: {name}"))),
    };
    if let Some(shadow) = shadow {
        if alias.is_none()
            && let Some(last) = parts.last()
        {
            *alias = Some(TableAlias { name: last.clone(), columns: Vec::new() });
        }
        parts = ["temp", "main", shadow.as_str()].map(Ident::new).to_vec();
    } else if let [schema, table] = parts.as_slice()
        && !schema.value.eq_ignore_ascii_case("information_schema")
    {
        if schema.value.to_lowercase() == "temp" || schema.value.to_lowercase() == "system" {
            return Err(error("42P01", format!("relation \"{schema}.{table}\" does not exist")));
        }
        // the catalog first, because a schema may have its name
        parts = vec![Ident::with_quote('"', catalog), schema.clone(), table.clone()];
    }
    name.0 = parts.into_iter().map(ObjectNamePart::Identifier).collect();
    Ok(())
}

fn expression(expr: &mut Expr) -> Result<Option<Expr>, QueryError> {
    Ok(match expr {
        Expr::Function(function) => functions::rewrite(function)?,
        Expr::Identifier(ident) if is_value_function(ident) => {
            Some(raw(format!("mr_{}()", ident.value.to_lowercase())))
        }
        Expr::CompoundIdentifier(idents) if idents.len() > 2 => {
            // schema.table.column: the table is enough
            let keep = idents.split_off(idents.len() - 2);
            Some(Expr::CompoundIdentifier(keep))
        }
        Expr::BinaryOp { left, op, right } => binary(left, op, right),
        Expr::AnyOp { left, compare_op, right, .. } | Expr::AllOp { left, compare_op, right } => {
            if let BinaryOperator::PGCustomBinaryOperator(parts) = compare_op
                && let Some(plain) = parts.last().and_then(|name| plain_operator(name))
            {
                *compare_op = plain;
            }
            array_literal(right);
            if Params::number(right).is_some() {
                // a list of unknown type is compared as text
                **left = raw(format!("CAST({left} AS VARCHAR)"));
                **right = raw(format!("CAST({right} AS VARCHAR[])"));
            }
            None
        }
        Expr::Collate { expr, collation } => {
            let plain = matches!(plain_name(collation).as_str(), "default" | "c" | "posix" | "ucs_basic");
            plain.then(|| std::mem::replace(expr.as_mut(), raw("")))
        }
        Expr::Cast { expr: inner, data_type, .. } => cast(inner, data_type),
        Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } if escape_char.is_none() => {
            // a backslash escapes by default; a plain pattern stays as it is, because the engine optimises it
            let plain = matches!(pattern.as_ref(), Expr::Value(value)
                if matches!(&value.value, Value::SingleQuotedString(text) if !text.contains('\\')));
            if !plain {
                *escape_char = Some(Value::SingleQuotedString("\\".to_owned()));
            }
            None
        }
        Expr::SimilarTo { negated, expr, pattern, .. } => similar(*negated, expr, pattern),
        Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
            let length = overlay_for.as_ref().map_or_else(|| format!("length({overlay_what})"), ToString::to_string);
            Some(raw(format!(
                "(substring({expr}, 1, ({overlay_from}) - 1) || {overlay_what} || substring({expr}, ({overlay_from}) + ({length})))"
            )))
        }
        _ => None,
    })
}

fn binary(left: &Expr, op: &mut BinaryOperator, right: &Expr) -> Option<Expr> {
    if let BinaryOperator::PGCustomBinaryOperator(parts) = op {
        *op = parts.last().and_then(|name| plain_operator(name))?;
    }
    let matches = |not: &str, options: &str| Some(raw(format!("{not}regexp_matches({left}, {right}{options})")));
    match op {
        // `~` finds the pattern anywhere; DuckDB's wants all of the text
        BinaryOperator::PGRegexMatch => matches("", ""),
        BinaryOperator::PGRegexIMatch => matches("", ", 'i'"),
        BinaryOperator::PGRegexNotMatch => matches("NOT ", ""),
        BinaryOperator::PGRegexNotIMatch => matches("NOT ", ", 'i'"),
        // psql compares the roles of a policy with a list
        BinaryOperator::NotEq if left.to_string() == "polroles" => Some(raw("true")),
        BinaryOperator::Divide | BinaryOperator::Modulo if !never_zero(right) => {
            Some(raw(format!("{left} {op} CASE WHEN {right} = 0 THEN error('division by zero') ELSE {right} END")))
        }
        _ => None,
    }
}

fn plain_operator(name: &str) -> Option<BinaryOperator> {
    Some(match name {
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "||" => BinaryOperator::StringConcat,
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        _ => return None,
    })
}

/// Whether a divisor needs no check.
fn never_zero(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => never_zero(inner),
        Expr::Value(value) => match &value.value {
            Value::Number(text, _) => text.bytes().any(|b| (b'1'..=b'9').contains(&b)),
            _ => false,
        },
        Expr::Function(function) => plain_name(&function.name) == "nullif" && function.to_string().ends_with(", 0)"),
        Expr::Cast { expr, .. } => never_zero(expr),
        _ => false,
    }
}

/// Casts to types that DuckDB has not, or has with another meaning.
fn cast(inner: &mut Expr, data_type: &mut DataType) -> Option<Expr> {
    let text = data_type.to_string().to_lowercase().replace('"', "");
    let base = text.strip_prefix("pg_catalog.").unwrap_or(&text);
    let (element, list) = base.strip_suffix("[]").map_or((base, ""), |element| (element, "[]"));
    let is_literal = matches!(inner, Expr::Value(_));
    let custom =
        |name: &str| DataType::Custom(ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]), Vec::new());
    match element {
        "regclass" if is_literal => return Some(raw(format!("mr_to_regclass({inner})"))),
        "regclass" => return Some(raw(format!("mr_regclass_name({inner})"))),
        "regtype" if is_literal => return Some(raw(format!("mr_to_regtype({inner})"))),
        "regtype" => return Some(raw(format!("mr_format_type({inner}, NULL)"))),
        "regnamespace" if is_literal => return Some(raw(format!("mr_to_regnamespace({inner})"))),
        "regnamespace" => return Some(raw(format!("mr_regnamespace_name({inner})"))),
        "regproc" | "regprocedure" | "regrole" | "regoper" | "regconfig" => *data_type = custom("VARCHAR"),
        "name"
        | "bpchar"
        | "char"
        | "cstring"
        | "citext"
        | "xml"
        | "unknown"
        | "pg_lsn"
        | "refcursor"
        | "information_schema.sql_identifier"
        | "information_schema.character_data" => {
            *data_type = custom(&format!("VARCHAR{list}"));
        }
        "oid" | "xid" | "xid8" | "cid" => *data_type = custom(&format!("BIGINT{list}")),
        "numeric" | "decimal" => *data_type = custom(&format!("DECIMAL(38, 10){list}")),
        "jsonb" => *data_type = custom(&format!("JSON{list}")),
        other if other.starts_with("timestamp") || other.starts_with("time(") => {
            let plain = if other.contains("with time zone") || other.starts_with("timestamptz") {
                "TIMESTAMPTZ"
            } else if other.starts_with("timestamp") {
                "TIMESTAMP"
            } else {
                "TIME"
            };
            *data_type = custom(&format!("{plain}{list}"));
        }
        _ if text.len() > base.len() => *data_type = custom(base),
        _ => {}
    }
    if !list.is_empty() {
        array_literal(inner);
    }
    None
}

/// `'{a,b}'` is a list in PostgreSQL; DuckDB writes `['a','b']`.
fn array_literal(expr: &mut Expr) {
    match expr {
        Expr::Cast { expr, .. } | Expr::Nested(expr) => array_literal(expr),
        Expr::Value(value) => {
            let text = match &value.value {
                Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => text,
                _ => return,
            };
            if let Some(elements) = super::array_elements(text) {
                let items: Vec<String> =
                    elements.iter().map(|e| e.as_deref().map_or_else(|| "NULL".to_owned(), quote)).collect();
                *expr = raw(format!("[{}]", items.join(", ")));
            }
        }
        _ => {}
    }
}

/// SQL's regular expressions with a literal pattern.
fn similar(negated: bool, expr: &Expr, pattern: &Expr) -> Option<Expr> {
    let Expr::Value(value) = pattern else { return None };
    let Value::SingleQuotedString(text) = &value.value else { return None };
    let mut regex = String::new();
    for c in text.chars() {
        match c {
            '%' => regex.push_str(".*"),
            '_' => regex.push('.'),
            '.' | '^' | '$' => {
                regex.push('\\');
                regex.push(c);
            }
            other => regex.push(other),
        }
    }
    let not = if negated { "NOT " } else { "" };
    Some(raw(format!("{not}regexp_full_match({expr}, {})", quote(&regex))))
}
