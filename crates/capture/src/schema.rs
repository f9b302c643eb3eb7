//! From the catalog's types to the contract's columns.

use std::sync::Arc;

use millrace_contract::{Column, ColumnType, TableName, TableSchema};
use millrace_pg::Connection;
use millrace_wire::pgoutput::{Relation, ReplicaIdentity};
use tokio_postgres::types::Oid;

use crate::error::CaptureError;

/// What the catalog and the stream say of a column.
#[derive(Debug, Clone)]
pub(crate) struct RawColumn {
    pub(crate) name: String,
    pub(crate) type_oid: Oid,
    pub(crate) typmod: i32,
    pub(crate) key: bool,
}

/// The relation as an owned description, types not yet looked up.
pub(crate) fn columns_of(relation: &Relation<'_>) -> Vec<RawColumn> {
    relation
        .columns()
        .map(|c| RawColumn { name: c.name.to_owned(), type_oid: c.type_oid, typmod: c.typmod, key: c.key })
        .collect()
}

/// The schema of a relation of the stream.
pub(crate) async fn of_relation(
    catalog: &Connection,
    table: TableName,
    oid: Oid,
    identity: ReplicaIdentity,
    mut columns: Vec<RawColumn>,
) -> Result<Arc<TableSchema>, CaptureError> {
    if identity == ReplicaIdentity::Full {
        // the stream calls every column a key then
        let rows = catalog.query(include_str!("../sql/primary_key.sql"), &[&oid]).await?;
        let key: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        for column in &mut columns {
            column.key = key.contains(&column.name);
        }
    }
    resolve(catalog, table, oid, columns).await
}

/// Whether rows from before a change of the columns may show something else now than what was streamed:
/// a column that came with a default, changed its type or its name, another key. The stream tells
/// of none of these rows, so the table has to be copied anew.
pub(crate) async fn is_stale(catalog: &Connection, old: &TableSchema, new: &TableSchema) -> Result<bool, CaptureError> {
    if old.oid != new.oid {
        return Ok(true);
    }
    let kept: Vec<_> = new.columns.iter().filter_map(|c| Some((c, &old.columns[old.position(&c.name)?]))).collect();
    if kept.iter().any(|(new, old)| new != old) {
        return Ok(true);
    }
    let added: Vec<&str> =
        new.columns.iter().filter(|c| old.position(&c.name).is_none()).map(|c| c.name.as_str()).collect();
    if added.is_empty() {
        return Ok(false);
    }
    if kept.len() < old.columns.len() {
        // a drop and an add look like a new name
        return Ok(true);
    }
    let kept: Vec<&str> = kept.iter().map(|(c, _)| c.name.as_str()).collect();
    let rows = catalog.query(include_str!("../sql/added_columns.sql"), &[&new.oid, &added, &kept]).await?;
    Ok(rows.iter().any(|row| row.get("filled")))
}

/// Looks the types up.
pub(crate) async fn resolve(
    catalog: &Connection,
    table: TableName,
    oid: Oid,
    columns: Vec<RawColumn>,
) -> Result<Arc<TableSchema>, CaptureError> {
    let types: Vec<Oid> = columns.iter().map(|c| c.type_oid).collect();
    let typmods: Vec<i32> = columns.iter().map(|c| c.typmod).collect();
    let rows = catalog.query(include_str!("../sql/types.sql"), &[&types, &typmods]).await?;
    if !columns.iter().any(|c| c.key) {
        return Err(CaptureError::NoKey { table, what: "neither a primary key nor another replica identity" });
    }
    let columns = columns
        .into_iter()
        .zip(&rows)
        .map(|(column, row)| {
            let (kind, name): (&str, &str) = (row.get("kind"), row.get("name"));
            Column {
                name: column.name,
                column_type: column_type(row.get("base"), row.get("typmod"), kind, name),
                declared: row.get::<_, Option<String>>("declared").unwrap_or_default(),
                key: column.key,
            }
        })
        .collect();
    Ok(Arc::new(TableSchema { table, oid, columns }))
}

/// The oids are fixed for all versions (`pg_type.dat`).
fn column_type(base: Oid, typmod: i32, kind: &str, name: &str) -> ColumnType {
    match base {
        16 => ColumnType::Bool,
        21 => ColumnType::Int2,
        23 => ColumnType::Int4,
        20 => ColumnType::Int8,
        700 => ColumnType::Float4,
        701 => ColumnType::Float8,
        1700 => numeric(typmod),
        18 | 19 | 25 | 1042 | 1043 => ColumnType::Text,
        1082 => ColumnType::Date,
        1083 => ColumnType::Time,
        1114 => ColumnType::Timestamp,
        1184 => ColumnType::TimestampTz,
        2950 => ColumnType::Uuid,
        114 | 3802 => ColumnType::Json,
        17 => ColumnType::Bytea,
        _ if kind == "e" || name == "citext" => ColumnType::Text,
        _ => ColumnType::Other,
    }
}

/// Precision in the upper 16 bits, scale in the lower 11 with a sign (from version 15 on it may be negative).
fn numeric(typmod: i32) -> ColumnType {
    let bits = typmod - 4;
    let scale = ((bits & 0x7ff) ^ 0x400) - 0x400;
    match (u8::try_from((bits >> 16) & 0xffff), u8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if typmod >= 4 && scale <= precision => {
            ColumnType::Decimal { precision, scale }
        }
        _ => ColumnType::NumericText,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_modifiers() {
        let typmod = |precision: i32, scale: i32| ((precision << 16) | (scale & 0x7ff)) + 4;
        for (precision, scale, wanted) in [
            (14, 2, ColumnType::Decimal { precision: 14, scale: 2 }),
            (38, 38, ColumnType::Decimal { precision: 38, scale: 38 }),
            (39, 2, ColumnType::NumericText),
            (3, 5, ColumnType::NumericText),
            (5, -2, ColumnType::NumericText),
            (1000, 0, ColumnType::NumericText),
        ] {
            assert_eq!(numeric(typmod(precision, scale)), wanted, "numeric({precision},{scale})");
        }
        assert_eq!(numeric(-1), ColumnType::NumericText);
    }
}
