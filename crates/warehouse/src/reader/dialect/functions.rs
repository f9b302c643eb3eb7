//! Functions that PostgreSQL and DuckDB call differently.
//!
//! Functions that DuckDB lacks altogether are macros in `sql/session.sql`; here are those that need to look at
//! their arguments, other names, and those that readers may not call.

use millrace_contract::QueryError;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, Value,
};

use super::to_char::{Piece, date_pieces, is_numeric, numeric};
use crate::reader::error::{error, read_only};

/// PostgreSQL's name, DuckDB's name.
const RENAMED: &[(&str, &str)] = &[
    ("every", "bool_and"),
    ("jsonb_build_object", "json_object"),
    ("json_build_object", "json_object"),
    ("jsonb_build_array", "json_array"),
    ("json_build_array", "json_array"),
    ("jsonb_agg", "json_group_array"),
    ("json_agg", "json_group_array"),
    ("json_object_agg", "json_group_object"),
    ("jsonb_object_agg", "json_group_object"),
    ("jsonb_array_length", "json_array_length"),
    ("jsonb_typeof", "json_type"),
    ("json_typeof", "json_type"),
    ("to_jsonb", "to_json"),
    ("row_to_json", "to_json"),
    ("cardinality", "len"),
    ("clock_timestamp", "now"),
    ("statement_timestamp", "now"),
    ("transaction_timestamp", "now"),
    ("array_cat", "list_concat"),
    ("array_append", "list_append"),
    ("array_remove", "mr_array_remove"),
    ("char_length", "length"),
    ("octet_length", "strlen"),
    ("character_length", "length"),
    ("pg_typeof", "mr_typeof"),
    ("current_database", "mr_current_database"),
];

/// Functions of our own catalog emulation; each has a macro `mr_<name>` in `sql/catalog.sql`.
const CATALOG: &[&str] = &[
    "array_upper",
    "col_description",
    "current_schema",
    "current_schemas",
    "current_setting",
    "format_type",
    "has_any_column_privilege",
    "has_column_privilege",
    "has_database_privilege",
    "has_function_privilege",
    "has_schema_privilege",
    "has_sequence_privilege",
    "has_table_privilege",
    "inet_client_addr",
    "inet_server_addr",
    "obj_description",
    "pg_backend_pid",
    "pg_encoding_to_char",
    "pg_function_is_visible",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_function_arguments",
    "pg_get_function_identity_arguments",
    "pg_get_function_result",
    "pg_get_indexdef",
    "pg_get_keywords",
    "pg_get_partkeydef",
    "pg_get_ruledef",
    "pg_get_serial_sequence",
    "pg_get_triggerdef",
    "pg_get_userbyid",
    "pg_get_viewdef",
    "pg_has_role",
    "pg_is_in_recovery",
    "pg_is_other_temp_schema",
    "pg_my_temp_schema",
    "pg_postmaster_start_time",
    "pg_relation_is_publishable",
    "pg_relation_size",
    "pg_size_pretty",
    "pg_table_is_visible",
    "pg_table_size",
    "pg_total_relation_size",
    "pg_type_is_visible",
    "quote_ident",
    "set_config",
    "shobj_description",
    "to_regclass",
    "txid_current",
    "version",
    "pg_database_size",
    "pg_get_statisticsobjdef_columns",
    "pg_char_to_encoding",
    "pg_tablespace_location",
    "pg_tablespace_size",
    "pg_statistics_obj_is_visible",
    "pg_collation_is_visible",
    "pg_operator_is_visible",
    "pg_conversion_is_visible",
    "pg_opclass_is_visible",
    "pg_ts_config_is_visible",
    "pg_ts_dict_is_visible",
    "pg_ts_parser_is_visible",
    "pg_ts_template_is_visible",
    "pg_advisory_unlock_all",
    "to_regtype",
    "to_regnamespace",
];

/// Functions that reach beyond the data, by name or beginning of the name.
fn is_forbidden(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["getenv", "query", "query_table", "getvariable", "glob", "which_secret", "force_checkpoint"];
    const BEGINNINGS: [&str; 8] = ["read_", "duckdb_", "pragma_", "parquet_", "sniff_", "iceberg_", "pg_read_", "lo_"];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Functions in FROM that readers may call.
pub(super) fn table_function(name: &ObjectName) -> Result<String, QueryError> {
    const ALLOWED: [&str; 12] = [
        "generate_series",
        "unnest",
        "range",
        "json_each",
        "json_tree",
        "jsonb_each",
        "regexp_split_to_table",
        "string_split",
        "pg_get_keywords",
        "generate_subscripts",
        "json_array_elements",
        "jsonb_array_elements",
    ];
    let name = plain_name(name);
    if ALLOWED.contains(&name.as_str()) {
        return Ok(name);
    }
    if is_forbidden(&name) {
        return Err(error("42501", format!("permission denied for function {name}")));
    }
    Err(error("42883", format!("function {name} does not exist, or not in FROM")))
}

/// The last part of a name, in lower case, with `pg_catalog` taken off.
pub(super) fn plain_name(name: &ObjectName) -> String {
    name.0.last().and_then(ObjectNamePart::as_ident).map(|ident| ident.value.to_lowercase()).unwrap_or_default()
}

/// SQL text in place of an expression: an identifier without quotes is written as it is.
pub(super) fn raw(text: impl Into<String>) -> Expr {
    Expr::Identifier(Ident::new(text))
}

/// Rewrites a call whose arguments are rewritten already; `None` leaves it as it is now.
pub(super) fn rewrite(function: &mut Function) -> Result<Option<Expr>, QueryError> {
    let name = plain_name(&function.name);
    if is_forbidden(&name) {
        return Err(error("42501", format!("permission denied for function {name}")));
    }
    if matches!(name.as_str(), "nextval" | "setval") {
        return Err(read_only(&format!("{name}()")));
    }
    let args = arguments(function);
    if let Some(replaced) = by_arguments(&name, &args) {
        return Ok(Some(raw(replaced)));
    }
    let plain = RENAMED.iter().find(|(from, _)| *from == name).map(|(_, to)| (*to).to_owned());
    let new = plain.or_else(|| CATALOG.contains(&name.as_str()).then(|| format!("mr_{name}")));
    let qualified = function.name.0.len() > 1;
    if let Some(new) = new.or_else(|| qualified.then(|| name.clone())) {
        let is_catalog = function
            .name
            .0
            .first()
            .and_then(ObjectNamePart::as_ident)
            .is_none_or(|ident| !qualified || ident.value.eq_ignore_ascii_case("pg_catalog"));
        if !is_catalog {
            return Err(error("42883", format!("function {} does not exist", function.name)));
        }
        function.name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(new))]);
    }
    Ok(None)
}

/// The plain arguments, rewritten, as text.
fn arguments(function: &Function) -> Vec<Argument> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    list.args
        .iter()
        .filter_map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => {
                Some(Argument { text: expr.to_string(), literal: literal(expr) })
            }
            _ => None,
        })
        .collect()
}

struct Argument {
    text: String,
    literal: Option<String>,
}

fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) | Value::Number(text, _) => {
                Some(text.clone())
            }
            Value::DollarQuotedString(text) => Some(text.value.clone()),
            _ => None,
        },
        Expr::Cast { expr, .. } | Expr::Nested(expr) => literal(expr),
        _ => None,
    }
}

fn by_arguments(name: &str, args: &[Argument]) -> Option<String> {
    match (name, args) {
        ("to_char", [value, Argument { literal: Some(pattern), .. }]) => to_char(&value.text, pattern),
        ("to_date", [value, Argument { literal: Some(pattern), .. }]) => {
            Some(format!("CAST(strptime({}, {}) AS DATE)", value.text, quote(&parse_format(pattern)?)))
        }
        ("to_timestamp", [value, Argument { literal: Some(pattern), .. }]) => {
            Some(format!("CAST(strptime({}, {}) AS TIMESTAMPTZ)", value.text, quote(&parse_format(pattern)?)))
        }
        // numeric in PostgreSQL: it keeps exactly so many decimals
        ("round", [value, Argument { literal: Some(digits), .. }]) => {
            let scale: u8 = digits.parse().ok().filter(|scale| *scale <= 20)?;
            Some(format!("CAST(round({}, {scale}) AS DECIMAL(38, {scale}))", value.text))
        }
        ("format", [Argument { literal: Some(pattern), .. }, rest @ ..]) => printf(pattern, rest),
        // in FROM it is a table; here each element is a row
        ("generate_series", args) if args.len() > 1 => {
            let texts: Vec<&str> = args.iter().map(|arg| arg.text.as_str()).collect();
            Some(format!("unnest(generate_series({}))", texts.join(", ")))
        }
        ("div", [one, other]) => Some(format!("(({}) // ({}))", one.text, other.text)),
        ("mod", [one, other]) => Some(format!(
            "(({}) % CASE WHEN ({}) = 0 THEN error('division by zero') ELSE ({}) END)",
            one.text, other.text, other.text
        )),
        ("date_bin", [width, value, origin]) => {
            Some(format!("time_bucket({}, {}, {})", width.text, value.text, origin.text))
        }
        ("regexp_match", [value, pattern]) => {
            Some(format!("nullif([regexp_extract({0}, {1})], [''])", value.text, pattern.text))
        }
        ("json_array_elements" | "jsonb_array_elements", [value]) => {
            Some(format!("unnest(json_extract({}, '$[*]'))", value.text))
        }
        ("json_array_elements_text" | "jsonb_array_elements_text", [value]) => {
            Some(format!("unnest(json_extract_string({}, '$[*]'))", value.text))
        }
        ("regexp_split_to_table", [value, pattern]) => {
            Some(format!("unnest(regexp_split_to_array({}, {}))", value.text, pattern.text))
        }
        _ => None,
    }
}

fn to_char(value: &str, pattern: &str) -> Option<String> {
    if is_numeric(pattern) {
        let numeric = numeric(pattern)?;
        let text = format!("format({}, CAST(round({value}, {}) AS DOUBLE))", quote(&numeric.format), numeric.decimals);
        return Some(if numeric.width == 0 { text } else { format!("lpad({text}, {}, ' ')", numeric.width) });
    }
    let pieces: Vec<String> = date_pieces(pattern)
        .into_iter()
        .map(|piece| match piece {
            Piece::Strftime(format) => format!("strftime({value}, {})", quote(&format)),
            Piece::Expression(expression) => expression.replace("{}", value),
        })
        .collect();
    match pieces.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        _ => Some(format!("({})", pieces.join(" || "))),
    }
}

fn parse_format(pattern: &str) -> Option<String> {
    match date_pieces(pattern).as_slice() {
        [Piece::Strftime(format)] => Some(format.clone()),
        _ => None,
    }
}

/// `format('%s of %s', a, b)` as a concatenation.
fn printf(pattern: &str, args: &[Argument]) -> Option<String> {
    let mut parts = Vec::new();
    let mut args = args.iter();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('%') {
        parts.push(quote(before));
        let mut chars = after.chars();
        match chars.next()? {
            '%' => parts.push("'%'".to_owned()),
            's' => parts.push(format!("coalesce(CAST({} AS VARCHAR), '')", args.next()?.text)),
            'I' => parts.push(format!("mr_quote_ident({})", args.next()?.text)),
            _ => return None,
        }
        rest = chars.as_str();
    }
    parts.push(quote(rest));
    Some(format!("({})", parts.join(" || ")))
}

/// A literal.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
