//! Expressions: PostgreSQL's SQL in, the columns they need and DuckDB's SQL out.
//!
//! The subset: column references, literals, arithmetic, comparisons, `case`, `cast`, `extract`,
//! `substring`, `trim`, `like`, `in (…)`, regular-expression matches and the functions of [`SCALAR`]
//! and [`AGGREGATE`]. Whatever else is refused with its name, never passed through to mean something
//! different. The engine runs with `integer_division` and PostgreSQL's null order, so `/` and
//! `order by` need no translation.

use std::{collections::BTreeSet, ops::ControlFlow};

use millrace_base::Ident;
use serde::{Deserialize, Serialize};
use sqlparser::{
    ast::{
        BinaryOperator, DataType, ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
        FunctionArguments, Ident as SqlIdent, ObjectName, ObjectNamePart, Statement, Value, VisitMut, VisitorMut,
    },
    dialect::PostgreSqlDialect,
    parser::Parser,
    tokenizer::Token,
};

/// Functions with one result for each row, the same on both engines.
pub const SCALAR: &[&str] = &[
    "abs",
    "age",
    "btrim",
    "ceil",
    "ceiling",
    "char_length",
    "chr",
    "coalesce",
    "concat",
    "concat_ws",
    "date_part",
    "date_trunc",
    "exp",
    "floor",
    "greatest",
    "initcap",
    "least",
    "left",
    "length",
    "ln",
    "lower",
    "lpad",
    "ltrim",
    "make_date",
    "md5",
    "mod",
    "nullif",
    "power",
    "regexp_replace",
    "replace",
    "reverse",
    "right",
    "round",
    "rpad",
    "rtrim",
    "sign",
    "split_part",
    "sqrt",
    "starts_with",
    "strpos",
    "substr",
    "to_char",
    "translate",
    "trunc",
    "upper",
];

/// Functions that gather rows.
pub const AGGREGATE: &[&str] = &["avg", "bool_and", "bool_or", "count", "max", "min", "string_agg", "sum"];

/// Further functions that queries may use over rows of their result.
const WINDOW: &[&str] = &["dense_rank", "first_value", "lag", "last_value", "lead", "ntile", "rank", "row_number"];

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expression {
    /// DuckDB's SQL; all columns qualified and quoted.
    pub sql: String,
    /// `(table alias, column)` of every column used.
    pub columns: BTreeSet<(String, String)>,
    /// The column itself, if the expression is nothing else.
    pub bare: Option<(String, String)>,
    /// An aggregate whose value over two sets of rows is the sum of its values over each:
    /// `count(…)`, `coalesce(sum(…), 0)`. Exact unless it adds floating-point numbers.
    pub additive: bool,
    /// An additive aggregate that is cast to a decimal: the column that it sums. Adding up such values is
    /// exact only if the cast keeps the column's scale, which who knows the types must look at.
    pub cast_sum_of: Option<(String, String)>,
}

/// What an expression may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    Scalar,
    Aggregate,
}

/// Parses an expression whose bare columns belong to `own`.
pub(crate) fn parse(text: &str, own: &str, allowed: Allowed) -> Result<Expression, String> {
    let mut parser = Parser::new(&PostgreSqlDialect {})
        .try_with_sql(text)
        .map_err(|e| format!("`{text}` is not an expression: {}", reason(&e)))?;
    let mut expr = parser.parse_expr().map_err(|e| format!("`{text}` is not an expression: {}", reason(&e)))?;
    if parser.peek_token().token != Token::EOF {
        return Err(format!("`{text}` is not one expression: unexpected `{}`", parser.peek_token().token));
    }
    let mut rewrite = Rewrite { own: Some(own), allowed: Some(allowed), columns: BTreeSet::new(), gathers: false };
    if let ControlFlow::Break(problem) = expr.visit(&mut rewrite) {
        return Err(format!("`{text}`: {problem}"));
    }
    if allowed == Allowed::Aggregate && !rewrite.gathers {
        return Err(format!("`{text}` does not aggregate; use one of {}", AGGREGATE.join(", ")));
    }
    let bare = match &expr {
        Expr::CompoundIdentifier(_) => rewrite.columns.first().cloned(),
        _ => None,
    };
    let (inner, is_cast) = match &expr {
        Expr::Cast { expr, data_type: DataType::Numeric(_) | DataType::Decimal(_), .. } => (expr.as_ref(), true),
        other => (other, false),
    };
    // `sum(a * a)` has another scale than its column
    let sums_one_column = rewrite.columns.len() == 1 && !inner.to_string().contains(['*', '/', '+', '-', '%']);
    let additive = is_additive(inner) && (!is_cast || sums_one_column);
    let cast_sum_of = if is_cast && additive { rewrite.columns.first().cloned() } else { None };
    Ok(Expression { additive, cast_sum_of, sql: expr.to_string(), columns: rewrite.columns, bare })
}

fn is_additive(expr: &Expr) -> bool {
    let Expr::Function(function) = expr else { return false };
    let FunctionArguments::List(list) = &function.args else { return false };
    let whole = |name: &str| function.name.to_string() == name && list.duplicate_treatment.is_none();
    if whole("count") {
        return true;
    }
    let [
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Function(sum))),
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(zero))),
    ] = list.args.as_slice()
    else {
        return false;
    };
    let distinct = matches!(&sum.args, FunctionArguments::List(list) if list.duplicate_treatment.is_some());
    whole("coalesce") && sum.name.to_string() == "sum" && !distinct && zero.value.to_string() == "0"
}

/// A query of a view or a report: what it reads, and DuckDB's SQL for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranslatedQuery {
    pub sql: String,
    /// Relations read, as written (`schema.name` or `name`), without the query's own `with` names.
    pub relations: BTreeSet<String>,
}

/// Translates one `select` from PostgreSQL's SQL. Relations named in `qualify` without a schema get `warehouse`.
///
/// # Errors
/// If it is not one query, or uses what the subset leaves out; the text says what.
pub fn translate_query(text: &str, qualify: &BTreeSet<String>) -> Result<TranslatedQuery, String> {
    let mut statements =
        Parser::parse_sql(&PostgreSqlDialect {}, text).map_err(|e| format!("not a query: {}", reason(&e)))?;
    let (Some(Statement::Query(mut query)), None) = (statements.pop(), statements.pop()) else {
        return Err("exactly one select is wanted".into());
    };
    let mut rewrite = Rewrite { own: None, allowed: None, columns: BTreeSet::new(), gathers: false };
    if let ControlFlow::Break(problem) = query.visit(&mut rewrite) {
        return Err(problem);
    }
    let mut with = WithNames::default();
    if query.visit(&mut with).is_break() {
        return Err("the query cannot be walked".into());
    }
    let mut relations = Relations { with: with.names, qualify, found: BTreeSet::new() };
    if query.visit(&mut relations).is_break() {
        return Err("the query cannot be walked".into());
    }
    Ok(TranslatedQuery { sql: query.to_string(), relations: relations.found })
}

fn reason(error: &sqlparser::parser::ParserError) -> String {
    error.to_string().trim_start_matches("sql parser error: ").to_owned()
}

/// Unquoted names are lower case in PostgreSQL.
fn folded(ident: &SqlIdent) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

struct Rewrite<'a> {
    /// The table of bare columns; `None` in queries, whose columns are left alone.
    own: Option<&'a str>,
    /// `None` in queries: everything of the subset.
    allowed: Option<Allowed>,
    columns: BTreeSet<(String, String)>,
    gathers: bool,
}

impl VisitorMut for Rewrite<'_> {
    type Break = String;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<String> {
        match expr {
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } if self.own.is_some() => {
                return ControlFlow::Break("a subquery is not allowed here".into());
            }
            Expr::Function(function) => {
                if let Err(problem) = self.function(function) {
                    return ControlFlow::Break(problem);
                }
            }
            Expr::Cast { data_type, .. } => {
                if let Err(problem) = cast(data_type) {
                    return ControlFlow::Break(problem);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<String> {
        match expr {
            Expr::Identifier(ident) => {
                if let Some(own) = self.own {
                    *expr = self.column(own.to_owned(), folded(ident));
                }
            }
            Expr::CompoundIdentifier(parts) if self.own.is_some() => {
                let [table, column] = parts.as_slice() else {
                    return ControlFlow::Break(format!("`{expr}`: write table.column"));
                };
                *expr = self.column(folded(table), folded(column));
            }
            Expr::BinaryOp { left, op, right } => {
                let (negated, flags) = match op {
                    BinaryOperator::PGRegexMatch => (false, None),
                    BinaryOperator::PGRegexIMatch => (false, Some("i")),
                    BinaryOperator::PGRegexNotMatch => (true, None),
                    BinaryOperator::PGRegexNotIMatch => (true, Some("i")),
                    _ => return ControlFlow::Continue(()),
                };
                let mut arguments = vec![(**left).clone(), (**right).clone()];
                arguments.extend(flags.map(|f| Expr::value(Value::SingleQuotedString(f.into()))));
                let matches = call("regexp_matches", arguments);
                *expr = if negated {
                    Expr::UnaryOp { op: sqlparser::ast::UnaryOperator::Not, expr: Box::new(matches) }
                } else {
                    matches
                };
            }
            Expr::Function(function) if function.name.to_string() == "to_char" => match to_char(function) {
                Ok(translated) => *expr = translated,
                Err(problem) => return ControlFlow::Break(problem),
            },
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Rewrite<'_> {
    fn column(&mut self, table: String, column: String) -> Expr {
        let parts = vec![SqlIdent::with_quote('"', &table), SqlIdent::with_quote('"', &column)];
        self.columns.insert((table, column));
        Expr::CompoundIdentifier(parts)
    }

    fn function(&mut self, function: &mut Function) -> Result<(), String> {
        let name = function.name.to_string().to_lowercase();
        let scalar = SCALAR.contains(&name.as_str());
        let aggregate = AGGREGATE.contains(&name.as_str());
        let window = WINDOW.contains(&name.as_str());
        if function.over.is_some() && self.allowed.is_some() {
            return Err("a window function is not allowed here".into());
        }
        let fine = match self.allowed {
            None => scalar || aggregate || window,
            Some(Allowed::Scalar) => scalar,
            Some(Allowed::Aggregate) => scalar || aggregate,
        };
        if !fine {
            if aggregate {
                return Err(format!("the aggregate `{name}` is not allowed here"));
            }
            if ["now", "current_timestamp", "random", "clock_timestamp", "gen_random_uuid"].contains(&name.as_str()) {
                return Err(format!("`{name}` gives another result each time, so a rebuild would differ"));
            }
            let known = SCALAR.iter().chain(AGGREGATE).chain(WINDOW).copied();
            let near =
                crate::declare::nearest(&name, known).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            return Err(format!("the function `{name}` is not in the supported subset{near}"));
        }
        self.gathers |= aggregate;
        function.name = ObjectName(vec![ObjectNamePart::Identifier(SqlIdent::new(name))]);
        Ok(())
    }
}

/// Types that mean something else, or nothing, in DuckDB.
fn cast(data_type: &mut DataType) -> Result<(), String> {
    match data_type {
        DataType::Numeric(ExactNumberInfo::None)
        | DataType::Decimal(ExactNumberInfo::None)
        | DataType::Dec(ExactNumberInfo::None) => {
            Err("`numeric` without precision has no equal in the warehouse; write numeric(precision, scale)".into())
        }
        DataType::JSONB => {
            *data_type = DataType::JSON;
            Ok(())
        }
        DataType::Bytea => {
            *data_type = DataType::Blob(None);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(SqlIdent::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(|a| FunctionArg::Unnamed(FunctionArgExpr::Expr(a))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// `to_char(time, 'YYYY-MM-DD')` → `strftime(time, '%Y-%m-%d')`, for the patterns that have an equal.
fn to_char(function: &Function) -> Result<Expr, String> {
    const PATTERNS: [(&str, &str); 12] = [
        ("YYYY", "%Y"),
        ("MM", "%m"),
        ("DDD", "%j"),
        ("DD", "%d"),
        ("HH24", "%H"),
        ("MI", "%M"),
        ("SS", "%S"),
        ("IYYY", "%G"),
        ("IW", "%V"),
        ("FMMonth", "%B"),
        ("Mon", "%b"),
        ("FMDay", "%A"),
    ];
    let arguments = match &function.args {
        FunctionArguments::List(list) => list.args.as_slice(),
        _ => &[],
    };
    let [
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)),
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(pattern))),
    ] = arguments
    else {
        return Err("to_char wants a value and a literal pattern".into());
    };
    let Value::SingleQuotedString(pattern) = &pattern.value else {
        return Err("to_char wants a literal pattern".into());
    };
    let mut rest = pattern.as_str();
    let mut translated = String::new();
    while let Some(first) = rest.chars().next() {
        let longest = PATTERNS.iter().filter(|(p, _)| rest.starts_with(p)).max_by_key(|(p, _)| p.len());
        if let Some((from, to)) = longest {
            translated.push_str(to);
            rest = rest.strip_prefix(from).unwrap_or_default();
        } else if first.is_alphabetic() || first == '%' || first == '"' {
            return Err(format!("to_char pattern `{pattern}` is not in the supported subset at `{rest}`"));
        } else {
            translated.push(first);
            rest = rest.strip_prefix(first).unwrap_or_default();
        }
    }
    Ok(call("strftime", vec![value.clone(), Expr::value(Value::SingleQuotedString(translated))]))
}

#[derive(Default)]
struct WithNames {
    names: BTreeSet<String>,
}

impl VisitorMut for WithNames {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut sqlparser::ast::Query) -> ControlFlow<()> {
        for table in query.with.iter().flat_map(|w| &w.cte_tables) {
            self.names.insert(folded(&table.alias.name));
        }
        ControlFlow::Continue(())
    }
}

struct Relations<'a> {
    with: BTreeSet<String>,
    qualify: &'a BTreeSet<String>,
    found: BTreeSet<String>,
}

impl VisitorMut for Relations<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        let parts: Vec<String> =
            relation.0.iter().map(|p| p.as_ident().map_or_else(|| p.to_string(), folded)).collect();
        if let [name] = parts.as_slice() {
            if self.with.contains(name) {
                return ControlFlow::Continue(());
            }
            if self.qualify.contains(name) {
                *relation = ObjectName(
                    ["warehouse", name.as_str()]
                        .map(|part| ObjectNamePart::Identifier(SqlIdent::with_quote('"', part)))
                        .to_vec(),
                );
                self.found.insert(format!("warehouse.{name}"));
                return ControlFlow::Continue(());
            }
        }
        self.found.insert(parts.join("."));
        ControlFlow::Continue(())
    }
}

/// `"table"."column"`.
pub(crate) fn qualified(table: &str, column: &str) -> String {
    format!("{}.{}", Ident(table), Ident(column))
}
