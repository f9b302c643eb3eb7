//! PostgreSQL's system catalog over DuckDB's, for `psql`, drivers and tools.
//!
//! Every reader connection has temporary views `mr_pg_*` and macros `mr_*` made by `sql/session.sql` and
//! `sql/catalog.sql`; the rewriter points `pg_catalog.pg_class` and the like at them. They show the schemas of
//! the warehouse only. Non-goals: a complete catalog; what has no meaning here is an empty view.

use duckdb::Connection;

/// The database's name for clients, whatever the file is called.
pub(super) const DATABASE: &str = "warehouse";

const SESSION: &str = include_str!("../../sql/session.sql");
const CATALOG: &str = include_str!("../../sql/catalog.sql");

/// Makes a connection answer as PostgreSQL does.
pub(super) fn prepare(connection: &Connection) -> duckdb::Result<()> {
    connection.execute_batch(SESSION)?;
    connection.execute_batch(CATALOG)?;
    let catalog = name(connection)?.replace('"', "\"\"").replace('\'', "''");
    connection.execute_batch(&format!("set search_path = '\"{catalog}\".warehouse'"))
}

/// The name under which DuckDB has the file open.
pub(super) fn name(connection: &Connection) -> duckdb::Result<String> {
    connection.query_row("select current_database()", [], |row| row.get(0))
}

/// The view that stands for a table of `pg_catalog`.
pub(super) fn pg_catalog(table: &str) -> Option<String> {
    let wanted = format!("create temp view mr_{table} as");
    (table.starts_with("pg_") && CATALOG.contains(&wanted)).then(|| format!("mr_{table}"))
}

/// The view that stands for one of `information_schema`; `None` for those that DuckDB's own serves.
pub(super) fn information_schema(table: &str) -> Option<String> {
    let wanted = format!("create temp view mr_is_{table} as");
    CATALOG.contains(&wanted).then(|| format!("mr_is_{table}"))
}
