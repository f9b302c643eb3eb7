//! Keeps the workers told what the functions and relations of each database do.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use millrace_pg::{ConnectParams, Connection, PgError, connect};
use tokio_util::sync::CancellationToken;

use crate::{
    backends::Access,
    catalog::{Catalog, Row},
    options::Routing,
    proxy::Shared,
};

/// Between two looks at a database. Until the next one, what was created since is for the primary.
const INTERVAL: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Known {
    connection: Option<Connection>,
    rows: Vec<Row>,
}

/// Asks until `token` is cancelled: each database as soon as it has a client, and then again and again.
pub(crate) async fn follow(shared: Arc<Shared>, routing: Routing, token: CancellationToken) -> Result<(), Infallible> {
    let mut known: HashMap<Arc<str>, Known> = HashMap::new();
    let mut everything = true;
    loop {
        let databases = shared.databases();
        known.retain(|database, _| databases.contains(database));
        for database in databases {
            if everything || !known.contains_key(&database) {
                look(&shared, &routing, &database, known.entry(database.clone()).or_default()).await;
            }
        }
        // none of these loses anything when dropped
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => everything = true,
            () = shared.pool_made.notified() => everything = false,
        }
    }
}

async fn look(shared: &Shared, routing: &Routing, database: &Arc<str>, known: &mut Known) {
    let rows = match rows(shared, routing, database, known).await {
        Ok(Some(rows)) => rows,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, %database, "the proxy cannot ask what functions and relations do: what is new is for the primary");
            return;
        }
    };
    if rows == known.rows {
        return;
    }
    known.rows.clone_from(&rows);
    match tokio::task::spawn_blocking(move || Catalog::of_rows(&rows)).await {
        Ok(catalog) => {
            let catalog = Arc::new(catalog);
            for worker in &shared.workers {
                worker.order(|orders| drop(orders.catalogs.insert(database.clone(), catalog.clone())));
            }
        }
        Err(error) => tracing::error!(%error, %database, "a database's functions and relations cannot be judged"),
    }
}

/// All rows, or nothing while there is no primary.
async fn rows(
    shared: &Shared,
    routing: &Routing,
    database: &str,
    known: &mut Known,
) -> Result<Option<Vec<Row>>, PgError> {
    let Some(node) = shared.backend(Access::ReadWrite) else { return Ok(None) };
    let port = node.address.port();
    let asking = async {
        let open = match known.connection.take() {
            Some(open) if !open.is_closed() => open,
            _ => {
                let params = ConnectParams {
                    host: node.host,
                    port,
                    database: database.to_owned(),
                    user: routing.user.clone(),
                    password: routing.password.clone(),
                    tls: routing.tls.clone(),
                    application_name: "millrace proxy".to_owned(),
                };
                connect(&params, DEADLINE).await?
            }
        };
        let rows = open.query(include_str!("../sql/catalog.sql"), &[]).await?;
        Ok::<_, PgError>((open, rows))
    };
    let (open, rows) = match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answered) => answered?,
        Err(_) => return Err(PgError::Timeout { address: format!("port {port}"), deadline: DEADLINE }),
    };
    known.connection = Some(open);
    rows.iter().map(row).collect::<Result<_, _>>().map(Some)
}

fn row(row: &tokio_postgres::Row) -> Result<Row, PgError> {
    let name: String = row.try_get(1)?;
    Ok(match row.try_get(0)? {
        "f" => Row::Function { name, reads: row.try_get(2)? },
        "v" => Row::View { name, definition: row.try_get(3)? },
        _ => Row::Table {
            name,
            replicated: row.try_get(2)?,
            checks: row.try_get::<_, Option<Vec<String>>>(4)?.unwrap_or_default(),
        },
    })
}
