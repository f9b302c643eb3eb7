//! The running platform as the console and the command line operate it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::BoxFuture;
use millrace_base::{Lsn, Micros, Secret};
use millrace_capture::Command;
use millrace_config::Pack;
use millrace_console::Accounts;
use millrace_contract::{
    Query, Reader, TableName, TableSchema, Value,
    backups::{Backups, RestorePlan},
    cluster::Entry,
    operate::{Check, OperateError, Operator, Proof},
    query::RowSet,
    report::ReportCatalog,
    status::{NodeRole, NodeStatus, PlatformStatus, RunStatus},
};
use millrace_model::Models;
use millrace_pg::{ConnectParams, PgError, connect};
use millrace_warehouse::{Engine, WarehouseError, WriterHandle};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{models, observe::Observatory, restorable::Restorable};
use crate::{context::Context, explain::chain, verify};

const DEADLINE: Duration = Duration::from_secs(20);
/// The warehouse must have reached the source's position of now within this, to be called in step.
const CATCH_UP: Duration = Duration::from_secs(20);
const BARRIER_DEADLINE: Duration = Duration::from_secs(300);
const RESYNC_DEADLINE: Duration = Duration::from_secs(6 * 3600);
const REPORT_DEADLINE: Duration = Duration::from_secs(300);

/// What `verify` needs to know of the configuration.
#[derive(Debug)]
pub(crate) struct Access {
    /// Superuser access to a node; which one is still to be said.
    pub(crate) superuser: ConnectParams,
    /// With password and database; a reload changes passwords.
    pub(crate) roles: tokio::sync::watch::Sender<Vec<(String, Secret, String)>>,
    pub(crate) capture_role: (String, Secret, String),
    pub(crate) endpoint: ConnectParams,
    pub(crate) secrets_file: PathBuf,
    pub(crate) publication: String,
    /// Set once the publication is made.
    pub(crate) published: OnceLock<Vec<TableName>>,
    pub(crate) migrations: Vec<millrace_migrate::Migration>,
}

impl Access {
    /// Notes what is captured.
    pub(crate) fn publish(&self, tables: &[TableName]) {
        // set once in a platform's life, so what was there already is the same
        drop(self.published.set(tables.to_vec()));
    }

    fn published(&self) -> &[TableName] {
        self.published.get().map(Vec::as_slice).unwrap_or_default()
    }
}

/// Work on models that the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ModelWork {
    Plan,
    Build,
    Rebuild,
}

/// What became of it: a line for each model.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ModelReport {
    pub(crate) changes: Vec<String>,
    /// Models that cannot be built as declared.
    pub(crate) held: Vec<String>,
    /// How the pack on disk differs from what is built, where that is not the answer itself.
    pub(crate) notes: Vec<String>,
    pub(crate) duration_ms: u64,
}

/// All handles that operating needs.
#[derive(Debug)]
pub(crate) struct PlatformOperator {
    /// As it was started.
    pub(crate) context: Arc<Context>,
    pub(crate) observatory: Observatory,
    pub(crate) restorable: Restorable,
    pub(crate) access: Access,
    pub(crate) cluster: millrace_cluster::operate::Handle,
    /// Holds the cluster's history.
    pub(crate) cluster_folder: PathBuf,
    pub(crate) reader: Arc<dyn Reader>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) writer: WriterHandle,
    /// Where the pack is, to read its models as they are now.
    pub(crate) pack_dir: PathBuf,
    pub(crate) capture: mpsc::Sender<Command>,
    pub(crate) catalog: Arc<ReportCatalog>,
    /// The console's users; set when the console starts.
    pub(crate) accounts: OnceLock<Arc<Accounts>>,
    pub(crate) ready: tokio::sync::watch::Sender<bool>,
    pub(crate) stop: CancellationToken,
}

/// A pinned state of the warehouse, let go with this value.
#[derive(Debug)]
struct Pin {
    engine: Arc<Engine>,
    name: String,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.engine.abandon(&self.name);
    }
}

fn refused(error: &dyn std::error::Error, hint: Option<String>) -> OperateError {
    OperateError { message: chain(error), hint }
}

fn warehouse(error: &WarehouseError) -> OperateError {
    refused(error, Some(error.hint()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WarehouseError> + Send + 'static,
) -> Result<T, OperateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| warehouse(&error)),
        Err(error) => Err(refused(&error, None)),
    }
}

fn pg(error: &PgError) -> OperateError {
    refused(error, error.hint())
}

impl PlatformOperator {
    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    pub(crate) fn catalog(&self) -> &ReportCatalog {
        &self.catalog
    }

    /// Asks the platform to stop; it does so after the answer.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// One read-only statement.
    pub(crate) async fn query(&self, sql: String, params: Vec<Value>, limit: usize) -> Result<RowSet, OperateError> {
        let mut query = Query::new(sql).with(params);
        query.deadline = REPORT_DEADLINE;
        let run = async { self.reader.query(query).await?.collect(limit).await };
        run.await.map_err(|error| refused(&error, error.hint.clone()))
    }

    /// Plans or builds the models of the pack as it is on disk now, or rebuilds what is built.
    pub(crate) async fn model(&self, work: ModelWork) -> Result<ModelReport, OperateError> {
        let started = self.observatory.clock.monotonic();
        let mut notes = Vec::new();
        let changes = match work {
            ModelWork::Plan => {
                let (engine, models) = (self.engine.clone(), self.declared()?);
                let changes = blocking(move || millrace_warehouse::plan_models(&engine, &models)).await?;
                changes.iter().filter_map(models::planned).collect()
            }
            ModelWork::Build => self.build(Arc::new(self.declared()?)).await?,
            ModelWork::Rebuild => {
                let rebuilt = self.writer.rebuild().await.map_err(|error| warehouse(&error))?;
                notes = self.differences().await;
                rebuilt.into_iter().map(|name| format!("rebuilt {name}")).collect()
            }
        };
        let held = self.writer.in_force().held.iter().map(models::sentence).collect();
        let duration_ms = millis(self.observatory.clock.monotonic().saturating_sub(started));
        Ok(ModelReport { changes, held, notes, duration_ms })
    }

    /// Builds what is declared; columns that the source has and the warehouse lacks come with a fresh copy.
    async fn build(&self, declared: Arc<Models>) -> Result<Vec<String>, OperateError> {
        let client = connect(&self.database()?, DEADLINE).await.map_err(|error| pg(&error))?;
        let fit = models::fit(&client, &declared).await.map_err(|error| refused(&error, Some(error.hint())))?;
        let mut unfit = self.not_captured(&declared);
        unfit.extend(fit.unfit);
        let built = self.writer.build(declared, unfit).await.map_err(|error| warehouse(&error))?;
        let mut changes: Vec<String> = built.changes.iter().filter_map(models::planned).collect();
        for table in built.lacking.iter().map(models::table) {
            // held models are tried again by the writer after each copy
            self.copy_anew(table.clone()).await?;
            changes.push(format!("copied {table} anew, for its new columns"));
        }
        Ok(changes)
    }

    /// The models as the pack on disk declares them.
    fn declared(&self) -> Result<Models, OperateError> {
        let pack = Pack::load(&self.pack_dir).map_err(|error| refused(&error, error.hint()))?;
        super::parse_models(&pack).map_err(|error| OperateError { message: error.to_string(), hint: None })
    }

    /// Models that a running platform cannot build: it does not capture a table of theirs.
    fn not_captured(&self, declared: &Models) -> BTreeMap<String, String> {
        let captured = |source: &&millrace_model::Source| self.access.published().contains(&models::table(source));
        let without = |model: &millrace_model::Model| {
            let source = model.sources().into_iter().find(|source| !captured(source))?;
            Some(format!("{source} is not captured yet; a restart of the platform adds it"))
        };
        declared.iter().filter_map(|model| Some((model.name().to_owned(), without(model)?))).collect()
    }

    /// How the pack on disk differs from what is built, in sentences.
    async fn differences(&self) -> Vec<String> {
        let declared = match self.declared() {
            Ok(declared) => declared,
            Err(error) => return vec![format!("the pack on disk cannot be read: {error}")],
        };
        let engine = self.engine.clone();
        match blocking(move || millrace_warehouse::plan_models(&engine, &declared)).await {
            Ok(changes) => changes
                .iter()
                .filter_map(models::planned)
                .map(|change| {
                    format!("the pack on disk differs from what is built; `millrace model build` would {change}")
                })
                .collect(),
            Err(error) => vec![format!("the pack on disk could not be compared with what is built: {error}")],
        }
    }

    /// Copies a captured table anew.
    async fn copy_anew(&self, table: TableName) -> Result<(), OperateError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Resync { table, reply }).await?;
        let applied = answered(answer, RESYNC_DEADLINE).await?;
        applied.map(|_applied| ()).map_err(|error| refused(&error, Some(error.hint())))
    }

    fn superuser_at(&self, node: &NodeStatus) -> ConnectParams {
        ConnectParams { host: node.host.clone(), port: node.port, ..self.access.superuser.clone() }
    }

    fn primary(&self) -> Result<ConnectParams, OperateError> {
        let status = self.cluster.status();
        let found = status.nodes.iter().find(|node| node.role == NodeRole::Primary);
        found.map(|node| self.superuser_at(node)).ok_or_else(|| OperateError {
            message: "the cluster has no primary".into(),
            hint: Some("see `millrace status`".into()),
        })
    }

    /// Superuser access to each node, the primary first.
    fn nodes(&self) -> Vec<(String, ConnectParams)> {
        let mut nodes = self.cluster.status().nodes;
        nodes.sort_by_key(|node| node.role != NodeRole::Primary);
        nodes.iter().map(|node| (node.name.clone(), self.superuser_at(node))).collect()
    }

    /// The pack's database as the superuser.
    fn database(&self) -> Result<ConnectParams, OperateError> {
        Ok(self.primary()?.to_database(&self.access.capture_role.2))
    }

    /// Stops the world for a moment at an exact position, then compares at leisure.
    async fn compare(&self) -> Result<Proof, OperateError> {
        let started = self.observatory.clock.monotonic();
        let (reply, answer) = oneshot::channel();
        let name = format!("prove-{}", started.as_micros());
        // a pin keeps old versions of rows: it must go, whatever becomes of this call
        let pin = Pin { engine: self.engine.clone(), name: name.clone() };
        self.command(Command::Barrier { name: name.clone(), reply }).await?;
        let barrier = answered(answer, BARRIER_DEADLINE).await?.map_err(|error| refused(&error, Some(error.hint())))?;
        let lsn = barrier.lsn;
        let result = self.compare_at(&barrier.snapshot.clone(), &name).await;
        // until here its connection kept the snapshot
        drop(barrier);
        drop(pin);
        let (tables, models) = result?;
        let mut notes = self.differences().await;
        notes.extend(self.writer.in_force().held.iter().map(models::sentence));
        Ok(Proof {
            lsn,
            duration_ms: millis(self.observatory.clock.monotonic().saturating_sub(started)),
            tables,
            models,
            notes,
        })
    }

    async fn compare_at(
        &self,
        snapshot: &str,
        pin: &str,
    ) -> Result<(Vec<millrace_contract::operate::Compared>, Vec<millrace_contract::operate::Compared>), OperateError>
    {
        let client = connect(&self.database()?, DEADLINE).await.map_err(|error| pg(&error))?;
        // the same texts as capture reads
        client
            .batch_execute(&format!(
                "SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 3;
                 SET bytea_output = 'hex'; SET statement_timeout = 0;
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
                 SET TRANSACTION SNAPSHOT {}",
                millrace_base::ident::Literal(snapshot)
            ))
            .await
            .map_err(|error| pg(&error.into()))?;
        let mut tables = Vec::new();
        for schema in self.schemas(pin).await? {
            let compared = millrace_prove::compare_table(&client, self.reader.as_ref(), pin, &schema).await;
            tables.push(compared.map_err(|error| refused(&error, None))?);
        }
        let (engine, pin) = (self.engine.clone(), pin.to_owned());
        let models = blocking(move || millrace_warehouse::verify_built(&engine, Some(&pin))).await?;
        Ok((tables, models))
    }

    /// The captured tables as the warehouse knows them.
    async fn schemas(&self, pin: &str) -> Result<Vec<TableSchema>, OperateError> {
        let mut query = Query::new("SELECT schema_json FROM audit.tables ORDER BY table_name");
        query.pinned = Some(pin.to_owned());
        let read = async { self.reader.query(query).await?.collect(10_000).await };
        let rows = read.await.map_err(|error| refused(&error, error.hint.clone()))?;
        let texts = rows.rows.iter().filter_map(|row| row.first().and_then(Value::to_text));
        let schemas: Result<Vec<TableSchema>, _> = texts.map(|text| serde_json::from_str(&text)).collect();
        schemas.map_err(|error| {
            refused(&error, Some("audit.tables is damaged: recopy with `millrace up --recopy`".to_owned()))
        })
    }

    async fn command(&self, command: Command) -> Result<(), OperateError> {
        let stopped =
            || OperateError { message: "capture does not run".into(), hint: Some("`millrace status` says why".into()) };
        match tokio::time::timeout(DEADLINE, self.capture.send(command)).await {
            Ok(sent) => sent.map_err(|_| stopped()),
            Err(_) => Err(stopped()),
        }
    }

    /// Where the source is now, and whether the warehouse gets there in time.
    async fn catch_up(&self) -> Result<(Lsn, bool), OperateError> {
        let client = connect(&self.database()?, DEADLINE).await.map_err(|error| pg(&error))?;
        // a message in the log, so that there is something to arrive even if no one writes
        let sql = "SELECT pg_catalog.pg_logical_emit_message(true, 'millrace', 'verify')::text";
        let row = client.query_one(sql, &[]).await.map_err(|error| pg(&error.into()))?;
        let lsn: Lsn = row
            .try_get::<_, String>(0)
            .map_err(|error| pg(&error.into()))?
            .parse()
            .map_err(|error: millrace_base::lsn::ParseLsnError| refused(&error, None))?;
        let mut capture = self.observatory.parts.capture.clone();
        let arrived = tokio::time::timeout(CATCH_UP, capture.wait_for(|status| status.watermark >= lsn)).await;
        Ok((lsn, matches!(arrived, Ok(Ok(_)))))
    }

    async fn check(&self) -> Result<Vec<Check>, OperateError> {
        let (caught_up_to, caught_up) = self.catch_up().await?;
        let mut client = connect(&self.database()?, DEADLINE).await.map_err(|error| pg(&error))?;
        let pending = millrace_migrate::pending(client.client_mut(), &self.access.migrations).await;
        let subject = verify::Subject {
            status: self.status().await,
            nodes: self.nodes(),
            roles: self.access.roles.borrow().clone(),
            etl_reader: self.access.capture_role.clone(),
            endpoint: self.access.endpoint.clone(),
            secrets_file: self.access.secrets_file.clone(),
            publication: self.access.publication.clone(),
            published: self.access.published().iter().map(ToString::to_string).collect(),
            migrations_pending: pending.map_err(|error| chain(&error)),
            reader: self.reader.as_ref(),
            catalog: &self.catalog,
            caught_up,
            caught_up_to,
        };
        Ok(verify::run(&subject).await)
    }
}

async fn answered<T>(answer: oneshot::Receiver<T>, deadline: Duration) -> Result<T, OperateError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(OperateError {
            message: "capture stopped before it answered".into(),
            hint: Some("`millrace status` says why".into()),
        }),
        Err(_) => Err(OperateError {
            message: format!("capture did not answer within {} s", deadline.as_secs()),
            hint: Some("it may be far behind: `millrace status` says how far".into()),
        }),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Operator for PlatformOperator {
    fn status(&self) -> BoxFuture<'_, PlatformStatus> {
        Box::pin(self.observatory.status())
    }

    fn runs(&self, limit: usize) -> BoxFuture<'_, Result<Vec<RunStatus>, OperateError>> {
        Box::pin(async move { self.observatory.runs(limit).await.map_err(|error| refused(&error, error.hint.clone())) })
    }

    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, OperateError>> {
        let folder = self.cluster_folder.clone();
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || millrace_cluster::history::newest(&folder, limit)).await;
            let read = read.map_err(|error| refused(&error, None))?;
            read.map_err(|error| OperateError {
                message: format!("the cluster's history cannot be read: {error}"),
                hint: Some(format!("look at cluster.history.jsonl in {}", self.cluster_folder.display())),
            })
        })
    }

    fn verify(&self) -> BoxFuture<'_, Result<Vec<Check>, OperateError>> {
        Box::pin(self.check())
    }

    fn prove(&self) -> BoxFuture<'_, Result<Proof, OperateError>> {
        Box::pin(self.compare())
    }

    fn backups(&self) -> BoxFuture<'_, Result<Option<Backups>, OperateError>> {
        Box::pin(self.restorable.backups())
    }

    fn restore_plan(&self, at: Micros) -> BoxFuture<'_, Result<RestorePlan, OperateError>> {
        Box::pin(self.restorable.plan(at))
    }

    fn resync(&self, table: &str) -> BoxFuture<'_, Result<(), OperateError>> {
        let table = table.parse::<TableName>();
        Box::pin(async move {
            let table = table.map_err(|error| refused(&error, None))?;
            if !self.access.published().contains(&table) {
                let known: Vec<_> = self.access.published().iter().map(ToString::to_string).collect();
                return Err(OperateError {
                    message: format!("{table} is not captured"),
                    hint: Some(format!("one of {}", known.join(", "))),
                });
            }
            self.copy_anew(table).await
        })
    }
}
