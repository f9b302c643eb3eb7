//! The running platform as the console and the command line operate it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::BoxFuture;
use millrace_base::{Lsn, Secret};
use millrace_capture::Command;
use millrace_config::Pack;
use millrace_console::Accounts;
use millrace_contract::{
    Query, Reader, TableName, TableSchema, Value,
    operate::{Check, OperateError, Operator, Proof},
    query::RowSet,
    report::ReportCatalog,
    status::{PlatformStatus, RunStatus},
};
use millrace_model::{Change, ChangeKind, Models};
use millrace_pg::{ConnectParams, PgError, connect};
use millrace_warehouse::{Engine, WarehouseError, WriterHandle};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::observe::Observatory;
use crate::{explain::chain, verify};

const DEADLINE: Duration = Duration::from_secs(20);
/// The warehouse must have reached the source's position of now within this, to be called in step.
const CATCH_UP: Duration = Duration::from_secs(20);
const BARRIER_DEADLINE: Duration = Duration::from_secs(300);
const RESYNC_DEADLINE: Duration = Duration::from_secs(6 * 3600);
const REPORT_DEADLINE: Duration = Duration::from_secs(300);

/// What `verify` needs to know of the configuration.
#[derive(Debug)]
pub(crate) struct Access {
    /// Superuser access to each node, the primary first.
    pub(crate) nodes: Vec<(String, ConnectParams)>,
    pub(crate) roles: Vec<(String, Secret, String)>,
    pub(crate) capture_role: (String, Secret, String),
    pub(crate) endpoint: ConnectParams,
    pub(crate) secrets_file: PathBuf,
    pub(crate) publication: String,
    pub(crate) published: Vec<TableName>,
    pub(crate) migrations: Vec<millrace_migrate::Migration>,
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
    pub(crate) duration_ms: u64,
}

/// All handles that operating needs.
#[derive(Debug)]
pub(crate) struct PlatformOperator {
    pub(crate) observatory: Observatory,
    pub(crate) access: Access,
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

/// One line of a plan; nothing about what stays as it is.
fn sentence(change: &Change) -> Option<String> {
    let verb = match change.kind {
        ChangeKind::Create => "create",
        ChangeKind::Rebuild => "rebuild",
        ChangeKind::Drop => "drop",
        ChangeKind::Unchanged => return None,
    };
    let reasons = if change.reasons.is_empty() { String::new() } else { format!(": {}", change.reasons.join("; ")) };
    Some(format!("{verb} {}{reasons}", change.model))
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

    /// Plans, builds or rebuilds the models of the pack as it is on disk now.
    pub(crate) async fn model(&self, work: ModelWork) -> Result<ModelReport, OperateError> {
        let started = self.observatory.clock.monotonic();
        let models = Arc::new(self.declared()?);
        let changes = match work {
            ModelWork::Plan => {
                let (engine, models) = (self.engine.clone(), models.clone());
                blocking(move || millrace_warehouse::plan_models(&engine, &models)).await?
            }
            ModelWork::Build => self.writer.build(models.clone()).await.map_err(|error| warehouse(&error))?,
            ModelWork::Rebuild => {
                self.writer.rebuild().await.map_err(|error| warehouse(&error))?;
                Vec::new()
            }
        };
        let changes = match work {
            ModelWork::Rebuild => models.iter().map(|model| format!("rebuilt {}", model.name())).collect(),
            ModelWork::Plan | ModelWork::Build => changes.iter().filter_map(sentence).collect(),
        };
        Ok(ModelReport { changes, duration_ms: millis(self.observatory.clock.monotonic().saturating_sub(started)) })
    }

    /// The models as the pack on disk declares them. One that needs a table which is not captured yet
    /// cannot be built by a running platform.
    fn declared(&self) -> Result<Models, OperateError> {
        let pack = Pack::load(&self.pack_dir).map_err(|error| refused(&error, error.hint()))?;
        let models =
            super::parse_models(&pack).map_err(|error| OperateError { message: error.to_string(), hint: None })?;
        let missing: Vec<String> = models
            .sources()
            .into_iter()
            .filter(|source| {
                !self.access.published.iter().any(|table| table.schema == source.schema && table.name == source.table)
            })
            .map(|source| source.to_string())
            .collect();
        if missing.is_empty() {
            return Ok(models);
        }
        Err(OperateError {
            message: format!("the models need tables that are not captured yet: {}", missing.join(", ")),
            hint: Some("restart the platform: it adds them to the publication and copies them".to_owned()),
        })
    }

    fn primary(&self) -> Result<&ConnectParams, OperateError> {
        self.access
            .nodes
            .first()
            .map(|(_, params)| params)
            .ok_or_else(|| OperateError { message: "the cluster has no nodes".into(), hint: None })
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
        Ok(Proof {
            lsn,
            duration_ms: millis(self.observatory.clock.monotonic().saturating_sub(started)),
            tables,
            models,
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
        let (engine, models, pin) = (self.engine.clone(), Arc::new(self.declared()?), pin.to_owned());
        let models = blocking(move || millrace_warehouse::verify_models(&engine, &models, Some(&pin))).await?;
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
        let mut capture = self.observatory.capture.clone();
        let arrived = tokio::time::timeout(CATCH_UP, capture.wait_for(|status| status.watermark >= lsn)).await;
        Ok((lsn, matches!(arrived, Ok(Ok(_)))))
    }

    async fn check(&self) -> Result<Vec<Check>, OperateError> {
        let (caught_up_to, caught_up) = self.catch_up().await?;
        let mut client = connect(&self.database()?, DEADLINE).await.map_err(|error| pg(&error))?;
        let pending = millrace_migrate::pending(client.client_mut(), &self.access.migrations).await;
        let subject = verify::Subject {
            status: self.status().await,
            nodes: self.access.nodes.clone(),
            roles: self.access.roles.clone(),
            etl_reader: self.access.capture_role.clone(),
            endpoint: self.access.endpoint.clone(),
            secrets_file: self.access.secrets_file.clone(),
            publication: self.access.publication.clone(),
            published: self.access.published.iter().map(ToString::to_string).collect(),
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

    fn verify(&self) -> BoxFuture<'_, Result<Vec<Check>, OperateError>> {
        Box::pin(self.check())
    }

    fn prove(&self) -> BoxFuture<'_, Result<Proof, OperateError>> {
        Box::pin(self.compare())
    }

    fn resync(&self, table: &str) -> BoxFuture<'_, Result<(), OperateError>> {
        let table = table.parse::<TableName>();
        Box::pin(async move {
            let table = table.map_err(|error| refused(&error, None))?;
            if !self.access.published.contains(&table) {
                let known: Vec<_> = self.access.published.iter().map(ToString::to_string).collect();
                return Err(OperateError {
                    message: format!("{table} is not captured"),
                    hint: Some(format!("one of {}", known.join(", "))),
                });
            }
            let (reply, answer) = oneshot::channel();
            self.command(Command::Resync { table, reply }).await?;
            answered(answer, RESYNC_DEADLINE)
                .await?
                .map(|_applied| ())
                .map_err(|error| refused(&error, Some(error.hint())))
        })
    }
}
