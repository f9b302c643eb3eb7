//! The names PostgreSQL gives to result columns without an alias (its `FigureColname`).

use sqlparser::ast::{CastKind, DataType, Expr, Ident, Select, SelectItem, SetExpr, TrimWhereField};

/// Names all unnamed columns of a select as PostgreSQL would.
pub(super) fn name_columns(select: &mut Select) {
    for item in &mut select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => {
                if let Some(name) = alias_needed(expr) {
                    let expr = std::mem::replace(expr, Expr::Identifier(Ident::new("")));
                    *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
                }
            }
            SelectItem::ExprWithAlias { alias, .. } => *alias = folded(alias),
            SelectItem::QualifiedWildcard(..) | SelectItem::Wildcard(_) => {}
        }
    }
}

/// An identifier without quotes is in lower case for PostgreSQL.
fn folded(ident: &Ident) -> Ident {
    match ident.quote_style {
        Some(_) => ident.clone(),
        None => Ident::with_quote('"', ident.value.to_lowercase()),
    }
}

/// `None` for a plain column, whose name both engines give.
fn alias_needed(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) if is_value_function(ident) => Some(ident.value.to_lowercase()),
        Expr::Identifier(ident) => lower_needed(ident),
        Expr::CompoundIdentifier(idents) => idents.last().and_then(lower_needed),
        other => Some(column_name(other).unwrap_or_else(|| "?column?".to_owned())),
    }
}

fn lower_needed(ident: &Ident) -> Option<String> {
    let lower = ident.value.to_lowercase();
    (ident.quote_style.is_none() && lower != ident.value).then_some(lower)
}

/// Functions without parentheses that the parser gives as identifiers.
pub(super) fn is_value_function(ident: &Ident) -> bool {
    const NAMES: [&str; 6] =
        ["current_user", "session_user", "user", "current_catalog", "current_role", "current_schema"];
    ident.quote_style.is_none() && NAMES.iter().any(|name| ident.value.eq_ignore_ascii_case(name))
}

fn column_name(expr: &Expr) -> Option<String> {
    let fixed = |name: &str| Some(name.to_owned());
    match expr {
        Expr::Identifier(ident) => Some(folded(ident).value),
        Expr::CompoundIdentifier(idents) => idents.last().map(|ident| folded(ident).value),
        Expr::CompoundFieldAccess { root, .. } => column_name(root),
        Expr::Function(function) => {
            function.name.0.last().and_then(|part| part.as_ident()).map(|ident| folded(ident).value)
        }
        Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, .. } => {
            column_name(expr).or_else(|| Some(type_name(data_type)))
        }
        Expr::TypedString(typed) => Some(type_name(&typed.data_type)),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => column_name(inner),
        Expr::Case { else_result, .. } => else_result.as_deref().and_then(column_name).or_else(|| fixed("case")),
        Expr::Extract { .. } => fixed("extract"),
        Expr::Exists { .. } => fixed("exists"),
        Expr::Array(_) => fixed("array"),
        Expr::Position { .. } => fixed("position"),
        Expr::Substring { .. } => fixed("substring"),
        Expr::Overlay { .. } => fixed("overlay"),
        Expr::Trim { trim_where: Some(TrimWhereField::Leading), .. } => fixed("ltrim"),
        Expr::Trim { trim_where: Some(TrimWhereField::Trailing), .. } => fixed("rtrim"),
        Expr::Trim { .. } => fixed("btrim"),
        Expr::AtTimeZone { .. } => fixed("timezone"),
        Expr::Ceil { .. } => fixed("ceil"),
        Expr::Floor { .. } => fixed("floor"),
        Expr::Interval(_) => fixed("interval"),
        Expr::Tuple(_) => fixed("row"),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first()? {
                SelectItem::UnnamedExpr(expr) => column_name(expr),
                SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias).value),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// PostgreSQL's internal name of a type.
fn type_name(data_type: &DataType) -> String {
    let text = data_type.to_string().to_lowercase();
    let base = text.split('(').next().unwrap_or_default().trim();
    let base = base.strip_prefix("pg_catalog.").unwrap_or(base);
    match base {
        "int" | "integer" => "int4",
        "bigint" => "int8",
        "smallint" => "int2",
        "double precision" | "float" => "float8",
        "real" => "float4",
        "decimal" | "dec" => "numeric",
        "boolean" => "bool",
        "character varying" => "varchar",
        "character" | "char" => "bpchar",
        "timestamp with time zone" => "timestamptz",
        "timestamp without time zone" => "timestamp",
        other => other.trim_matches('"'),
    }
    .to_owned()
}
