//! The peer: PostgreSQL's own subscription into a second server, and `pg_dump | psql`.
//!
//! The subscriber's tables have the publisher's columns and primary keys, and no other index, foreign
//! key, check or trigger: the least that an applied UPDATE and DELETE need, so the peer is at its best.

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use millrace_base::{Lsn, files, ident::Literal};
use millrace_pg::Connection;

use super::{
    lab::{Lab, Server},
    source::{PUBLICATION, Source},
};

/// Between looks at how far the peer is.
pub(crate) const POLL: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_secs(3600);
const SUBSCRIPTION: &str = "native";

/// A second server that follows the first by PostgreSQL's own means.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) server: Server,
    /// Without a secret: the password stands in a file that only the server reads.
    conninfo: String,
    /// `CREATE TABLE` and `ALTER TABLE … ADD PRIMARY KEY` of each published table.
    tables: Vec<(String, String)>,
    databases: u32,
    passfile: PathBuf,
}

impl Native {
    pub(crate) async fn make(lab: &mut Lab, source: &Source) -> anyhow::Result<Self> {
        let server = lab.server("subscriber", &[]).await?;
        let rows =
            source.connect().await?.query(include_str!("../../sql/bench/published_ddl.sql"), &[&PUBLICATION]).await?;
        let ca = lab.folder().join("ca.crt");
        std::fs::copy(lab.context.config.tls().ca_cert(), &ca)?;
        std::fs::set_permissions(&ca, std::fs::Permissions::from_mode(0o644))?;
        let passfile = lab.folder().join("subscriber.pgpass");
        let reader = &source.reader;
        let line = format!("{}:{}:*:{}:{}\n", reader.host, reader.port, reader.user, reader.password.reveal());
        files::write_atomic(&passfile, line.as_bytes(), 0o600)?;
        lab.run_as().own(&passfile)?;
        let conninfo = format!(
            "host={} port={} dbname={} user={} passfile='{}' sslmode=verify-full sslrootcert='{}'",
            reader.host,
            reader.port,
            reader.database,
            reader.user,
            passfile.display(),
            ca.display()
        );
        // for pg_dump and psql, which run as the superuser of either server
        let passfile = lab.folder().join("superuser.pgpass");
        let line = format!("127.0.0.1:*:*:postgres:{}\n", source.admin.password.reveal());
        files::write_atomic(&passfile, line.as_bytes(), 0o600)?;
        let tables = rows.iter().map(|row| (row.get("make"), row.get("key"))).collect();
        Ok(Self { server, conninfo, tables, databases: 0, passfile })
    }

    /// A new database with the published tables, empty; with their keys or without.
    pub(crate) async fn database(&mut self, keys: bool) -> anyhow::Result<Target> {
        self.databases += 1;
        let name = format!("copy_{}", self.databases);
        self.server.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let client = self.server.connect(&name).await?;
        client.batch_execute("CREATE SCHEMA operational").await?;
        for (make, key) in &self.tables {
            client.batch_execute(make).await?;
            if keys {
                client.batch_execute(key).await?;
            }
        }
        client.batch_execute("CHECKPOINT").await?;
        Ok(Target { client, name })
    }

    /// Starts a subscription of `target`: an initial copy, then changes.
    pub(crate) async fn subscribe(&self, target: &Target) -> anyhow::Result<()> {
        let sql = format!(
            "CREATE SUBSCRIPTION {SUBSCRIPTION} CONNECTION {} PUBLICATION {PUBLICATION}",
            Literal(&self.conninfo)
        );
        Ok(target.client.batch_execute(&sql).await?)
    }

    /// `pg_dump --data-only | psql` of the published tables, then their primary keys: what a restore does.
    pub(crate) async fn dump_and_load(&self, lab: &Lab, source: &Source, target: &Target) -> anyhow::Result<()> {
        let command = |program: &str, server: &Server, database: &str| {
            let mut command = tokio::process::Command::new(lab.binaries().program(program));
            command
                .args(["--host", "127.0.0.1", "--username", "postgres", "--no-password", "--dbname", database])
                .args(["--port", &server.admin.port.to_string()])
                .env("PGPASSFILE", &self.passfile)
                .env("PGSSLMODE", "verify-full")
                .env("PGSSLROOTCERT", lab.context.config.tls().ca_cert())
                .kill_on_drop(true)
                .stderr(Stdio::inherit());
            command
        };
        let mut dump = command("pg_dump", &source.server, &source.admin.database);
        dump.arg("--data-only").stdout(Stdio::piped());
        for table in &source.tables {
            dump.arg("--table").arg(table.to_sql());
        }
        let mut dump = dump.spawn().context("cannot run pg_dump")?;
        let pipe: Stdio = dump.stdout.take().context("pg_dump has no output")?.try_into()?;
        let mut load = command("psql", &self.server, &target.name);
        load.args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1"]).stdin(pipe).stdout(Stdio::null());
        let (loaded, dumped) = tokio::try_join!(load.status(), dump.wait())?;
        if !loaded.success() || !dumped.success() {
            bail!("pg_dump | psql failed: {dumped}, {loaded}");
        }
        for (_, key) in &self.tables {
            target.client.batch_execute(key).await?;
        }
        Ok(())
    }

    /// Removes what [`Native::database`] made.
    pub(crate) async fn remove(&self, target: Target) -> anyhow::Result<()> {
        target.client.batch_execute(&format!("DROP SUBSCRIPTION IF EXISTS {SUBSCRIPTION}")).await?;
        let Target { client, name } = target;
        drop(client);
        let admin = self.server.connect("postgres").await?;
        Ok(admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await?)
    }
}

/// A database that is copied into.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) client: Connection,
    name: String,
}

impl Target {
    /// Waits until every table is copied and follows the stream.
    pub(crate) async fn copied(&self) -> anyhow::Result<()> {
        self.until("SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel").await
    }

    /// Waits until a transaction past `position` is applied.
    pub(crate) async fn applied_past(&self, position: Lsn) -> anyhow::Result<()> {
        let sql = include_str!("../../sql/bench/applied.sql").replace("POSITION", &position.to_string());
        self.until(&sql).await
    }

    async fn until(&self, sql: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while !self.client.query_one(sql, &[]).await?.try_get::<_, Option<bool>>(0)?.unwrap_or(false) {
            if Instant::now() > deadline {
                bail!("the native subscription did not get there within an hour");
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub(crate) async fn enable(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute(&format!("ALTER SUBSCRIPTION {SUBSCRIPTION} ENABLE")).await?)
    }

    /// Stops applying, and waits until the publisher has let the slot go.
    pub(crate) async fn disable(&self, publisher: &Connection) -> anyhow::Result<()> {
        self.client.batch_execute(&format!("ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE")).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let active = "SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active";
        while publisher.query_opt(active, &[&SUBSCRIPTION]).await?.is_some() {
            if Instant::now() > deadline {
                bail!("the native subscription does not stop");
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}
