//! Keeps the workers told what the functions and relations of each database do.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use millrace_pg::{ConnectParams, PgError, connect};
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
/// On the server, shorter than here: it does not notice that nobody waits any more.
const LIMITS: &str = "SET lock_timeout = '2s'; SET statement_timeout = '8s'";

/// Asks until `token` is cancelled: each database as soon as it has a client, and then again and again.
pub(crate) async fn follow(shared: Arc<Shared>, routing: Routing, token: CancellationToken) -> Result<(), Infallible> {
    let mut known: HashMap<Arc<str>, Vec<Row>> = HashMap::new();
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

async fn look(shared: &Shared, routing: &Routing, database: &Arc<str>, known: &mut Vec<Row>) {
    let rows = match rows(shared, routing, database).await {
        Ok(Some(rows)) => rows,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, %database, "the proxy cannot ask what functions and relations do: what is new is for the primary");
            return;
        }
    };
    if rows == *known {
        return;
    }
    known.clone_from(&rows);
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
async fn rows(shared: &Shared, routing: &Routing, database: &str) -> Result<Option<Vec<Row>>, PgError> {
    let Some(node) = shared.backend(Access::ReadWrite) else { return Ok(None) };
    let port = node.address.port();
    let asking = async {
        let params = ConnectParams {
            host: node.host,
            port,
            database: database.to_owned(),
            user: routing.user.clone(),
            password: routing.password.clone(),
            tls: routing.tls.clone(),
            application_name: "millrace proxy".to_owned(),
        };
        // closed again after each look: a database with a connection cannot be dropped
        let open = connect(&params, DEADLINE).await?;
        open.batch_execute(LIMITS).await?;
        Ok::<_, PgError>(open.query(include_str!("../sql/catalog.sql"), &[]).await?)
    };
    let rows = match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answered) => answered?,
        Err(_) => return Err(PgError::Timeout { address: format!("port {port}"), deadline: DEADLINE }),
    };
    rows.iter().map(row).collect::<Result<_, _>>().map(Some)
}

fn row(row: &tokio_postgres::Row) -> Result<Row, PgError> {
    let name: String = row.try_get(1)?;
    Ok(match row.try_get(0)? {
        "f" => Row::Function { name, reads: row.try_get(2)? },
        "s" => Row::Serializable,
        "v" => Row::View { name, definition: row.try_get(3)? },
        _ => Row::Table {
            name,
            replicated: row.try_get(2)?,
            checks: row.try_get::<_, Option<Vec<String>>>(4)?.unwrap_or_default(),
        },
    })
}
