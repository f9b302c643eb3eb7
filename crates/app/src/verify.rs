//! `millrace verify`: looks at every promise on the running platform and changes nothing.
//!
//! Each check tries the forbidden thing and expects the refusal, or reads the state that a promise
//! speaks of. A check that cannot be made has failed.

use std::{os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use millrace_base::{Lsn, Secret, tls};
use millrace_contract::{
    Query, Reader, Value,
    operate::Check,
    report::ReportCatalog,
    status::{NodeRole, NodeState, PlatformStatus},
};
use millrace_pg::{ConnectParams, Connection, PgError, connect};

const DEADLINE: Duration = Duration::from_secs(10);
/// A log this far behind is still "keeping up", in bytes (16 MiB: one segment).
const REPLICA_LAG_BYTES_MAX: u64 = 16 << 20;

/// What the checks look at.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) status: PlatformStatus,
    /// Superuser access to each node, with its name; the first is the primary.
    pub(crate) nodes: Vec<(String, ConnectParams)>,
    /// Login roles that applications use, with the database that they may reach.
    pub(crate) roles: Vec<(String, Secret, String)>,
    /// The role that capture reads as, and the pack's database.
    pub(crate) etl_reader: (String, Secret, String),
    /// The read-only role at the warehouse's endpoint.
    pub(crate) endpoint: ConnectParams,
    pub(crate) secrets_file: PathBuf,
    pub(crate) publication: String,
    pub(crate) published: Vec<String>,
    pub(crate) migrations_pending: Result<Vec<String>, String>,
    pub(crate) reader: &'a dyn Reader,
    pub(crate) catalog: &'a ReportCatalog,
    /// Waits until the warehouse stands at the position or later; false if it does not in time.
    pub(crate) caught_up: bool,
    pub(crate) caught_up_to: Lsn,
}

/// All checks, in the order of the data's way.
pub(crate) async fn run(subject: &Subject<'_>) -> Vec<Check> {
    let mut checks = vec![secrets(subject), processes(subject)];
    for (name, params) in &subject.nodes {
        checks.push(check(format!("node {name} speaks TLS only"), refuses_plain(params).await));
        checks.push(check(format!("node {name} checks passwords by SCRAM"), refuses_wrong_password(params).await));
        checks.push(check(format!("node {name} has page checksums"), setting(params, "data_checksums", "on").await));
    }
    if let Some((_, primary)) = subject.nodes.first() {
        checks.push(check("the log is fit for capture", setting(primary, "wal_level", "logical").await));
        checks.push(check("slots cannot fill the disk", slot_limit(primary).await));
        checks.push(check("the publication has just the tables of the models", publication(subject, primary).await));
        checks.push(check("changes that the log does not show are told", event_triggers(subject, primary).await));
        for (role, password, database) in &subject.roles {
            let own = ConnectParams { user: role.clone(), password: password.clone(), ..primary.to_database(database) };
            checks.push(check(format!("role {role} reaches {database} and nothing else"), confined(&own).await));
        }
        checks.push(check("the capture role cannot write", cannot_write(subject, primary).await));
    }
    for (name, params) in subject.nodes.iter().skip(1) {
        checks.push(check(format!("replica {name} refuses writes"), refuses_writes(params).await));
    }
    checks.extend(replication(&subject.status));
    checks.push(migrations(subject));
    checks.push(check(
        "the warehouse stands at the source's position",
        if subject.caught_up {
            Ok(format!("at {}", subject.caught_up_to))
        } else {
            Err(format!("not yet at {}", subject.caught_up_to))
        },
    ));
    checks.push(check("no table is quarantined", quarantine(&subject.status)));
    checks.push(check("readers cannot change the warehouse", read_only(subject.reader).await));
    checks.push(check("the warehouse endpoint speaks TLS only", refuses_plain(&subject.endpoint).await));
    checks.push(check("the warehouse endpoint checks passwords", refuses_wrong_password(&subject.endpoint).await));
    checks.push(check("the warehouse endpoint answers", answers(&subject.endpoint).await));
    checks.push(check("every report runs", reports(subject).await));
    checks
}

fn check(name: impl Into<String>, seen: Result<String, String>) -> Check {
    let passed = seen.is_ok();
    Check { name: name.into(), passed, detail: seen.unwrap_or_else(|detail| detail) }
}

fn secrets(subject: &Subject<'_>) -> Check {
    let path = subject.secrets_file.display();
    let seen = match tls::is_private(&subject.secrets_file) {
        Ok(true) => Ok(format!("{path} is closed to others")),
        Ok(false) => Err(format!("{path} can be read by others: chmod 600 it")),
        Err(error) => Err(format!("{path}: {error}")),
    };
    check("secrets are private", seen)
}

fn processes(subject: &Subject<'_>) -> Check {
    let owners: Result<Vec<u32>, String> = subject
        .status
        .nodes
        .iter()
        .filter_map(|node| node.pid)
        .map(|pid| {
            std::fs::metadata(format!("/proc/{pid}")).map(|m| m.uid()).map_err(|e| format!("process {pid}: {e}"))
        })
        .collect();
    let seen = owners.and_then(|owners| match owners.contains(&0) {
        true => Err("a server runs as root".to_owned()),
        false => Ok(format!("{} servers, none of them root", owners.len())),
    });
    check("servers run unprivileged", seen)
}

async fn open(params: &ConnectParams) -> Result<Connection, String> {
    connect(params, DEADLINE).await.map_err(|error| error.to_string())
}

async fn refuses_plain(params: &ConnectParams) -> Result<String, String> {
    match connect(&ConnectParams { tls: None, ..params.clone() }, DEADLINE).await {
        Ok(_) => Err("a connection without TLS was let in".to_owned()),
        Err(PgError::Server { sqlstate, .. }) => Ok(format!("a plain connection is refused ({sqlstate})")),
        Err(error) => Err(format!("a plain connection was not refused but failed: {error}")),
    }
}

async fn refuses_wrong_password(params: &ConnectParams) -> Result<String, String> {
    match connect(&ConnectParams { password: Secret::generate(), ..params.clone() }, DEADLINE).await {
        Ok(_) => Err("a wrong password was let in".to_owned()),
        Err(error) if error.sqlstate() == Some("28P01") => Ok("a wrong password is refused".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn text(params: &ConnectParams, sql: &str) -> Result<String, String> {
    let client = open(params).await?;
    let rows = client.simple_query(sql).await.map_err(|error| PgError::from(error).to_string())?;
    rows.iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        })
        .ok_or_else(|| "no row came back".to_owned())
}

async fn setting(params: &ConnectParams, name: &str, wanted: &str) -> Result<String, String> {
    let value = text(params, &format!("SHOW {name}")).await?;
    if value == wanted { Ok(format!("{name} = {value}")) } else { Err(format!("{name} is {value}, not {wanted}")) }
}

async fn slot_limit(params: &ConnectParams) -> Result<String, String> {
    let value = text(params, "SHOW max_slot_wal_keep_size").await?;
    if value == "-1" {
        Err("max_slot_wal_keep_size has no limit".to_owned())
    } else {
        Ok(format!("at most {value} of log is kept for a slot"))
    }
}

async fn publication(subject: &Subject<'_>, primary: &ConnectParams) -> Result<String, String> {
    let client = open(&primary.to_database(&subject.etl_reader.2)).await?;
    let rows = client
        .query(
            "SELECT schemaname || '.' || tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1 ORDER BY 1",
            &[&subject.publication],
        )
        .await
        .map_err(|error| PgError::from(error).to_string())?;
    let found: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    let found = found.map_err(|error| error.to_string())?;
    let mut wanted = subject.published.clone();
    wanted.sort();
    if found == wanted {
        Ok(found.join(", "))
    } else {
        Err(format!("it has {}; wanted are {}", found.join(", "), wanted.join(", ")))
    }
}

/// Without them a table that is rewritten is not copied anew.
async fn event_triggers(subject: &Subject<'_>, primary: &ConnectParams) -> Result<String, String> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_event_trigger \
               WHERE evtname IN ('millrace_table_rewrite', 'millrace_ddl') AND evtenabled = 'A'";
    match text(&primary.to_database(&subject.etl_reader.2), sql).await?.as_str() {
        "2" => Ok("both event triggers are enabled".to_owned()),
        found => Err(format!("{found} of 2 event triggers are enabled: restart the platform, which makes them")),
    }
}

/// The role's own database lets it in; `postgres` and `millrace` do not, nor does replication.
async fn confined(own: &ConnectParams) -> Result<String, String> {
    open(own).await?;
    for other in ["postgres", "millrace"] {
        match connect(&own.to_database(other), DEADLINE).await {
            Ok(_) => return Err(format!("it can enter {other}")),
            Err(error) if matches!(error.sqlstate(), Some("28000" | "42501")) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok("other databases refuse it".to_owned())
}

async fn cannot_write(subject: &Subject<'_>, primary: &ConnectParams) -> Result<String, String> {
    let (role, password, database) = &subject.etl_reader;
    let client =
        open(&ConnectParams { user: role.clone(), password: password.clone(), ..primary.to_database(database) })
            .await?;
    for table in &subject.published {
        let quoted = table.split('.').map(|part| millrace_base::Ident(part).to_string()).collect::<Vec<_>>().join(".");
        match client.simple_query(&format!("DELETE FROM {quoted} WHERE false")).await.map_err(PgError::from) {
            Ok(_) => return Err(format!("it may delete from {table}")),
            Err(error) if error.sqlstate() == Some("42501") => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok("permission denied on every published table".to_owned())
}

async fn refuses_writes(params: &ConnectParams) -> Result<String, String> {
    let client = open(params).await?;
    match client.simple_query("BEGIN; CREATE TABLE millrace_verify_probe (); ROLLBACK").await.map_err(PgError::from) {
        Ok(_) => Err("it accepted a CREATE TABLE".to_owned()),
        Err(error) if error.sqlstate() == Some("25006") => Ok("read-only transaction (25006)".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn replication(status: &PlatformStatus) -> impl Iterator<Item = Check> {
    status.nodes.iter().filter(|node| node.role == NodeRole::Replica).map(|node| {
        let good = node.state == NodeState::Running
            && node.streaming == Some(true)
            && node.lag_bytes.is_some_and(|lag| lag <= REPLICA_LAG_BYTES_MAX);
        let lag = node.lag_bytes.map_or_else(|| "unknown lag".to_owned(), |lag| format!("{lag} bytes behind"));
        let seen = format!("{}, {lag}", node.doing);
        check(format!("replica {} streams and keeps up", node.name), if good { Ok(seen) } else { Err(seen) })
    })
}

fn migrations(subject: &Subject<'_>) -> Check {
    let seen = match &subject.migrations_pending {
        Ok(pending) if pending.is_empty() => Ok("all applied, checksums as in the pack".to_owned()),
        Ok(pending) => Err(format!("not applied: {}", pending.join(", "))),
        Err(reason) => Err(reason.clone()),
    };
    check("the schema is the pack's", seen)
}

fn quarantine(status: &PlatformStatus) -> Result<String, String> {
    let tables: Vec<_> = status.capture.quarantined.iter().map(|(table, _)| table.as_str()).collect();
    if tables.is_empty() { Ok("none".to_owned()) } else { Err(tables.join(", ")) }
}

async fn read_only(reader: &dyn Reader) -> Result<String, String> {
    for sql in [
        "DELETE FROM audit.watermarks",
        "CREATE TABLE warehouse.millrace_verify_probe (a int)",
        "SELECT * FROM read_csv('/etc/passwd')",
    ] {
        match reader.query(Query::new(sql)).await {
            Ok(stream) => {
                if stream.collect(1).await.is_ok() {
                    return Err(format!("`{sql}` was accepted"));
                }
            }
            Err(_refused) => {}
        }
    }
    match reader.query(Query::new("SELECT 1")).await {
        Ok(_) => Ok("writes and files are refused".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn answers(endpoint: &ConnectParams) -> Result<String, String> {
    let count = text(endpoint, "SELECT count(*) FROM audit.etl_runs").await?;
    Ok(format!("{count} load runs on record"))
}

async fn reports(subject: &Subject<'_>) -> Result<String, String> {
    for report in &subject.catalog.reports {
        let params = report.params.iter().map(|_| Value::Null).collect();
        let ran = match subject.reader.query(Query::new(report.sql.clone()).with(params)).await {
            Ok(stream) => stream.collect(1_000_000).await.map(|_| ()),
            Err(error) => Err(error),
        };
        ran.map_err(|error| format!("{}: {error}", report.name))?;
    }
    Ok(format!("{} reports", subject.catalog.reports.len()))
}
