//! What the source must be: publication, tables, slot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_base::{Ident, Lsn};
use millrace_contract::{TableName, TableSchema};
use millrace_pg::{Connection, replication::SystemIdentity};
use tokio_postgres::{Client, types::Oid};

use crate::{
    error::CaptureError,
    options::CaptureOptions,
    schema::{self, RawColumn},
};

/// What [`prepare`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Put into the publication: for [`CaptureOptions::added`]. All of them if it was made.
    pub added: Vec<TableName>,
    pub removed: Vec<TableName>,
}

/// Makes the publication, or aligns it: exactly `tables`, all operations, through partition roots; and the
/// event triggers that tell of what the log does not show. `admin` must be allowed to: a superuser, or the
/// owner of the tables, who cannot have event triggers.
///
/// # Errors
/// If a table is absent, of a kind that is not published, or has no key; or the server's error. Nothing
/// is changed then.
pub async fn prepare(admin: &Client, publication: &str, tables: &[TableName]) -> Result<Prepared, CaptureError> {
    let described = describe(admin, tables).await?;
    for table in described.values() {
        table.check()?;
    }
    watch_ddl(admin).await?;
    let name = Ident(publication);
    let list = |tables: &[TableName]| tables.iter().map(TableName::to_sql).collect::<Vec<_>>().join(", ");
    const OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";
    let state = admin.query_opt(include_str!("../sql/publication.sql"), &[&publication]).await?;
    let Some(state) = state else {
        admin.batch_execute(&format!("CREATE PUBLICATION {name} FOR TABLE {} WITH ({OPTIONS})", list(tables))).await?;
        return Ok(Prepared { added: tables.to_vec(), removed: Vec::new() });
    };
    if state.get("puballtables") {
        return Err(CaptureError::Publication {
            publication: publication.to_owned(),
            what: "is for all tables, and that cannot be changed: drop it".to_owned(),
        });
    }
    let published = published(admin, publication).await?;
    let added: Vec<_> = tables.iter().filter(|t| published.get(t).is_none_or(|p| p.partial)).cloned().collect();
    let removed: Vec<_> = published.keys().filter(|t| !tables.contains(t)).cloned().collect();
    // those with a filter leave and come back
    let leaving: Vec<_> =
        published.iter().filter(|(t, p)| p.partial || !tables.contains(t)).map(|(t, _)| t.clone()).collect();
    let mut statements = vec!["BEGIN".to_owned()];
    if !(state.get::<_, bool>("whole") && state.get::<_, bool>("pubviaroot")) {
        statements.push(format!("ALTER PUBLICATION {name} SET ({OPTIONS})"));
    }
    if !leaving.is_empty() {
        statements.push(format!("ALTER PUBLICATION {name} DROP TABLE {}", list(&leaving)));
    }
    if !added.is_empty() {
        statements.push(format!("ALTER PUBLICATION {name} ADD TABLE {}", list(&added)));
    }
    if statements.len() > 1 {
        statements.push("COMMIT".to_owned());
        if let Err(error) = admin.batch_execute(&statements.join("; ")).await {
            admin.batch_execute("ROLLBACK").await?;
            return Err(error.into());
        }
    }
    Ok(Prepared { added, removed })
}

async fn watch_ddl(admin: &Client) -> Result<(), CaptureError> {
    let row = admin.query_one("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user", &[]).await?;
    if row.get(0) {
        admin.batch_execute(include_str!("../sql/event_triggers.sql")).await?;
    } else {
        tracing::warn!("only a superuser can have event triggers: a table that is rewritten is not copied anew");
    }
    Ok(())
}

/// Tables that cannot be captured as they are, with reasons.
///
/// # Errors
/// The server's.
pub async fn unfit(client: &Client, tables: &[TableName]) -> Result<BTreeMap<TableName, CaptureError>, CaptureError> {
    let mut unfit = BTreeMap::new();
    let found = find(client, tables).await?;
    for table in tables {
        let checked = found.get(table).ok_or_else(|| absent(table)).and_then(Described::check);
        if let Err(error) = checked {
            unfit.insert(table.clone(), error);
        }
    }
    Ok(unfit)
}

/// The columns of some tables, generated ones left out; of those that exist.
///
/// # Errors
/// The server's.
pub async fn columns(
    client: &Client,
    tables: &[TableName],
) -> Result<BTreeMap<TableName, BTreeSet<String>>, CaptureError> {
    let found = find(client, tables).await?;
    let names = |table: Described| table.columns.into_iter().map(|column| column.name).collect();
    Ok(found.into_iter().map(|(name, table)| (name, names(table))).collect())
}

/// A table of the source as the catalog describes it.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) table: TableName,
    pub(crate) oid: Oid,
    kind: String,
    persistence: String,
    identity: String,
    columns: Vec<RawColumn>,
}

impl Described {
    fn check(&self) -> Result<(), CaptureError> {
        let table = || self.table.clone();
        if self.kind != "r" && self.kind != "p" {
            return Err(CaptureError::Table {
                table: table(),
                what: "is not an ordinary or partitioned table".to_owned(),
            });
        }
        if self.persistence != "p" {
            return Err(CaptureError::Table {
                table: table(),
                what: "is not logged, so it cannot be captured".to_owned(),
            });
        }
        if self.columns.iter().any(|c| c.key) {
            return Ok(());
        }
        Err(CaptureError::NoKey {
            table: table(),
            what: match self.identity.as_str() {
                "f" => "its replica identity is the whole row, but it has no primary key to tell equal rows apart",
                "n" => "its replica identity is nothing",
                "i" => "the index of its replica identity is gone",
                _ => "no primary key that is checked at once",
            },
        })
    }

    pub(crate) async fn schema(&self, catalog: &Connection) -> Result<Arc<TableSchema>, CaptureError> {
        self.check()?;
        schema::resolve(catalog, self.table.clone(), self.oid, self.columns.clone()).await
    }
}

fn absent(table: &TableName) -> CaptureError {
    CaptureError::Table { table: table.clone(), what: "does not exist".to_owned() }
}

/// The tables in the catalog, all of them.
pub(crate) async fn describe(
    client: &Client,
    tables: &[TableName],
) -> Result<BTreeMap<TableName, Described>, CaptureError> {
    let described = find(client, tables).await?;
    match tables.iter().find(|t| !described.contains_key(t)) {
        Some(table) => Err(absent(table)),
        None => Ok(described),
    }
}

/// Those of the tables that the catalog has.
async fn find(client: &Client, tables: &[TableName]) -> Result<BTreeMap<TableName, Described>, CaptureError> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.name.as_str()).collect();
    let rows = client.query(include_str!("../sql/tables.sql"), &[&schemas, &names]).await?;
    let mut described: BTreeMap<TableName, Described> = BTreeMap::new();
    for row in rows {
        let table = TableName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"));
        let entry = described.entry(table.clone()).or_insert_with(|| Described {
            table,
            oid: row.get("oid"),
            kind: row.get("kind"),
            persistence: row.get("persistence"),
            identity: row.get("identity"),
            columns: Vec::new(),
        });
        if let Some(name) = row.get::<_, Option<String>>("attribute") {
            entry.columns.push(RawColumn {
                name,
                type_oid: row.get("type_oid"),
                typmod: row.get("typmod"),
                key: row.get("key"),
            });
        }
    }
    Ok(described)
}

/// A table's entry in a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Another one when the table was taken out and put back.
    pub(crate) oid: Oid,
    /// With a row filter or a column list.
    pub(crate) partial: bool,
}

/// The tables in the publication.
pub(crate) async fn published(
    client: &Client,
    publication: &str,
) -> Result<BTreeMap<TableName, Membership>, CaptureError> {
    let rows = client.query(include_str!("../sql/published_tables.sql"), &[&publication]).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let table = TableName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"));
            (table, Membership { oid: row.get("membership"), partial: row.get("partial") })
        })
        .collect())
}

/// Checks the server and that the publication is one to work with.
pub(crate) async fn check_server(client: &Client, options: &CaptureOptions) -> Result<(), CaptureError> {
    let settings = client.query_one(include_str!("../sql/settings.sql"), &[]).await?;
    let version: i32 = settings.get("version");
    if version < 140_000 {
        return Err(CaptureError::Version { found: version / 10_000 });
    }
    if settings.get("in_recovery") {
        return Err(CaptureError::Replica);
    }
    let wal_level: String = settings.get("wal_level");
    if wal_level != "logical" {
        return Err(CaptureError::WalLevel { found: wal_level });
    }
    check_publication(client, options).await
}

/// Checks the publication's own properties.
pub(crate) async fn check_publication(client: &Client, options: &CaptureOptions) -> Result<(), CaptureError> {
    let publication = options.publication.clone();
    let state = client.query_opt(include_str!("../sql/publication.sql"), &[&publication]).await?;
    let Some(state) = state else { return Err(CaptureError::NoPublication { publication }) };
    let wrong = if state.get("puballtables") {
        "is for all tables; only what is wanted may be published"
    } else if !state.get::<_, bool>("whole") {
        "leaves out inserts, updates, deletes or truncates"
    } else if !state.get::<_, bool>("pubviaroot") {
        "does not publish partitions through their root"
    } else {
        return Ok(());
    };
    Err(CaptureError::Publication { publication, what: wrong.to_owned() })
}

/// The slot as it is now.
#[derive(Debug, Clone)]
pub(crate) struct SlotState {
    plugin: Option<String>,
    database: Option<String>,
    temporary: bool,
    wal_status: Option<String>,
    confirmed: Option<Lsn>,
}

/// Reads the slot; `None` if there is none.
pub(crate) async fn slot(client: &Client, name: &str) -> Result<Option<SlotState>, CaptureError> {
    let row = client.query_opt(include_str!("../sql/slot.sql"), &[&name]).await?;
    Ok(row.map(|row| SlotState {
        plugin: row.get("plugin"),
        database: row.get("database"),
        temporary: row.get("temporary"),
        wal_status: row.get("wal_status"),
        confirmed: row.get::<_, Option<String>>("confirmed_flush").and_then(|lsn| lsn.parse().ok()),
    }))
}

impl SlotState {
    /// It is ours to use or to drop.
    pub(crate) fn check_ours(&self, options: &CaptureOptions) -> Result<(), CaptureError> {
        let unfit = |what: String| Err(CaptureError::SlotUnfit { slot: options.slot.clone(), what });
        match (&self.plugin, &self.database) {
            (Some(plugin), _) if plugin != "pgoutput" => unfit(format!("is one of plugin {plugin}, not of pgoutput")),
            (Some(_), Some(database)) if *database != options.source.database => {
                unfit(format!("belongs to database {database}"))
            }
            (Some(_), Some(_)) if !self.temporary => Ok(()),
            (Some(_), _) => unfit("is a temporary one".to_owned()),
            (None, _) => unfit("is a physical one".to_owned()),
        }
    }

    /// It still holds everything from the watermark on.
    pub(crate) fn check_position(&self, options: &CaptureOptions, watermark: Lsn) -> Result<(), CaptureError> {
        let slot = options.slot.clone();
        if self.wal_status.as_deref() == Some("lost") {
            return Err(CaptureError::SlotLost { slot });
        }
        match self.confirmed {
            None => Err(CaptureError::SlotUnfit { slot, what: "was never finished".to_owned() }),
            Some(confirmed) if confirmed > watermark => Err(CaptureError::SlotAhead { slot, confirmed, watermark }),
            Some(_) => Ok(()),
        }
    }
}

/// The watermark belongs to this source.
pub(crate) fn check_identity(found: &SystemIdentity, expected: Option<u64>) -> Result<(), CaptureError> {
    match expected {
        Some(expected) if expected != found.system_id => {
            Err(CaptureError::OtherSource { found: found.system_id, expected })
        }
        _ => Ok(()),
    }
}
