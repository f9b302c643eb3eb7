//! Types of parameters, and what a statement returns, without running it.
//!
//! DuckDB leaves the types of parameters open until values are bound, but clients want to know them before.
//! A type is, in this order: the one the client declared; the one the parameter is cast to; the one of what it
//! is compared with (asked of the engine); text, as PostgreSQL does with what it cannot know.

use std::ops::ControlFlow;

use duckdb::{Connection, types::Value as DuckValue};
use millrace_contract::{
    QueryError,
    query::{Description, ResultColumn, ValueType},
};
use sqlparser::ast::{BinaryOperator, DataType, Expr, LimitClause, Query, Select, SetExpr, Value, Visit, Visitor};

use super::Translated;
use crate::reader::run;

/// What is known of `$n`.
#[derive(Debug, Clone, Default)]
pub(in crate::reader) struct Param {
    /// From a cast or a place that takes one type only.
    pub(super) known: Option<ValueType>,
    /// Queries whose single column has the parameter's type.
    pub(super) probes: Vec<String>,
    /// Stands where PostgreSQL takes an array.
    pub(super) is_list: bool,
}

/// All parameters met so far.
#[derive(Debug, Default)]
pub(super) struct Params(pub(super) Vec<Param>);

/// PostgreSQL's limit.
const PARAMS_MAX: usize = 65_535;

impl Params {
    /// The parameter that `expr` is, if it is one.
    pub(super) fn number(expr: &Expr) -> Option<usize> {
        match expr {
            Expr::Value(value) => match &value.value {
                Value::Placeholder(text) => {
                    text.strip_prefix('$')?.parse().ok().filter(|n| (1..=PARAMS_MAX).contains(n))
                }
                _ => None,
            },
            Expr::Nested(inner) => Self::number(inner),
            _ => None,
        }
    }

    pub(super) fn met(&mut self, number: usize) -> Option<&mut Param> {
        if self.0.len() < number {
            self.0.resize(number, Param::default());
        }
        self.0.get_mut(number.checked_sub(1)?)
    }

    pub(super) fn known(&mut self, expr: &Expr, value_type: Option<ValueType>) {
        if let Some(param) = Self::number(expr).and_then(|n| self.met(n)) {
            param.known = param.known.or(value_type);
        }
    }

    pub(super) fn is_list(&mut self, expr: &Expr) {
        match expr {
            Expr::Cast { expr, .. } | Expr::Nested(expr) => self.is_list(expr),
            expr => {
                if let Some(param) = Self::number(expr).and_then(|n| self.met(n)) {
                    param.is_list = true;
                }
            }
        }
    }

    /// Looks at the comparisons of a whole query, already rewritten.
    pub(super) fn compared(&mut self, query: &Query) {
        let with = query.with.as_ref().map(|with| format!("{with} ")).unwrap_or_default();
        let mut body = query.body.as_ref();
        while let SetExpr::SetOperation { left, right, .. } = body {
            if let SetExpr::Select(select) = right.as_ref() {
                self.compared_in(select, &with);
            }
            body = left;
        }
        if let SetExpr::Select(select) = body {
            self.compared_in(select, &with);
        }
        if let Some(LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
            for expr in limit.iter().chain(offset.iter().map(|offset| &offset.value)) {
                self.known(expr, Some(ValueType::Int8));
            }
        }
    }

    fn compared_in(&mut self, select: &Select, with: &str) {
        let from: Vec<String> = select.from.iter().map(ToString::to_string).collect();
        let from = if from.is_empty() { String::new() } else { format!(" FROM {}", from.join(", ")) };
        let mut finder = Comparisons::default();
        for expr in select.selection.iter().chain(&select.having) {
            // the visitor never breaks
            _ = expr.visit(&mut finder);
        }
        for (number, other) in finder.0 {
            let probe = format!("{with}SELECT {other} AS probed{from}");
            if !probe.contains('$')
                && let Some(param) = self.met(number)
            {
                param.probes.push(probe);
            }
        }
    }
}

/// Parameters and what they are compared with.
#[derive(Default)]
struct Comparisons(Vec<(usize, String)>);

impl Comparisons {
    fn pair(&mut self, one: &Expr, other: &Expr) {
        for (param, value) in [(one, other), (other, one)] {
            if let Some(number) = Params::number(param)
                && Params::number(value).is_none()
            {
                self.0.push((number, value.to_string()));
            }
        }
    }
}

impl Visitor for Comparisons {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        // an inner query has names of its own; it was looked at by itself
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::BinaryOp { left, op, right } if is_comparison(op) => self.pair(left, right),
            Expr::Between { expr, low, high, .. } => {
                self.pair(expr, low);
                self.pair(expr, high);
            }
            Expr::InList { expr, list, .. } => list.iter().for_each(|item| self.pair(expr, item)),
            Expr::IsDistinctFrom(one, other) | Expr::IsNotDistinctFrom(one, other) => self.pair(one, other),
            Expr::Like { expr, pattern, .. } | Expr::ILike { expr, pattern, .. } => self.pair(expr, pattern),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn is_comparison(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
    )
}

/// The contract's type of a type that a statement casts to.
pub(super) fn cast_type(data_type: &DataType) -> Option<ValueType> {
    let text = data_type.to_string().to_lowercase();
    let base = text.split('(').next().unwrap_or_default().trim();
    Some(match base.strip_prefix("pg_catalog.").unwrap_or(base) {
        "int" | "integer" | "int4" => ValueType::Int4,
        "bigint" | "int8" | "oid" => ValueType::Int8,
        "smallint" | "int2" => ValueType::Int2,
        "double precision" | "float" | "float8" => ValueType::Float8,
        "real" | "float4" => ValueType::Float4,
        "numeric" | "decimal" => ValueType::Decimal { precision: 38, scale: 10 },
        "boolean" | "bool" => ValueType::Bool,
        "text" | "varchar" | "character varying" | "name" | "bpchar" => ValueType::Text,
        "date" => ValueType::Date,
        "time" | "time without time zone" => ValueType::Time,
        "timestamp" | "timestamp without time zone" => ValueType::Timestamp,
        "timestamptz" | "timestamp with time zone" => ValueType::TimestampTz,
        "uuid" => ValueType::Uuid,
        "bytea" => ValueType::Bytes,
        "json" | "jsonb" => ValueType::Json,
        _ => return None,
    })
}

/// Describes a translated statement.
///
/// # Errors
/// What the engine says about it.
pub(in crate::reader) fn describe(
    connection: &Connection,
    translated: &Translated,
    declared: &[Option<ValueType>],
) -> Result<Description, QueryError> {
    let mut params = Vec::new();
    for (index, param) in translated.params.iter().enumerate() {
        let known = declared.get(index).copied().flatten().or(param.known);
        params.push(known.or_else(|| probe(connection, &param.probes)).unwrap_or(ValueType::Text));
    }
    if translated.explain {
        let columns = ["explain_key", "explain_value"]
            .map(|name| ResultColumn { name: name.to_owned(), value_type: ValueType::Text });
        return Ok(Description { columns: columns.to_vec(), params });
    }
    let examples: Vec<DuckValue> = params.iter().map(|value_type| example(*value_type)).collect();
    let columns = run::describe(connection, &translated.sql, &examples).or_else(|error| {
        // an empty text is no number: where the example does not fit, a null does
        let nulls = vec![DuckValue::Null; params.len()];
        if params.is_empty() { Err(error) } else { run::describe(connection, &translated.sql, &nulls) }
    })?;
    Ok(Description { columns, params })
}

fn probe(connection: &Connection, probes: &[String]) -> Option<ValueType> {
    probes.iter().find_map(|probe| {
        let columns = run::describe(connection, probe, &[]).ok()?;
        columns.first().map(|column| column.value_type).filter(|found| *found != ValueType::Other)
    })
}

/// A value of the type, for the engine's binder only.
fn example(value_type: ValueType) -> DuckValue {
    use duckdb::types::TimeUnit::Microsecond;
    match value_type {
        ValueType::Bool => DuckValue::Boolean(false),
        ValueType::Int2 => DuckValue::SmallInt(1),
        ValueType::Int4 => DuckValue::Int(1),
        ValueType::Int8 => DuckValue::BigInt(1),
        ValueType::HugeInt => DuckValue::HugeInt(1),
        ValueType::Float4 => DuckValue::Float(1.0),
        ValueType::Float8 => DuckValue::Double(1.0),
        ValueType::Decimal { .. } => DuckValue::Double(1.0),
        ValueType::Date => DuckValue::Date32(0),
        ValueType::Time => DuckValue::Time64(Microsecond, 0),
        ValueType::Timestamp | ValueType::TimestampTz => DuckValue::Timestamp(Microsecond, 0),
        ValueType::Bytes => DuckValue::Blob(Vec::new()),
        ValueType::Text | ValueType::Json | ValueType::Uuid | ValueType::Other => DuckValue::Text(String::new()),
    }
}
