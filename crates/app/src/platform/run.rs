//! One life of the platform, from lock to lock.
//!
//! Order of a start: folders, lock, log, listeners (a port in use is known before anything runs),
//! warehouse, cluster, control socket; when the primary is ready: roles, schema, sample data, models; then
//! proxy, capture, endpoint, console. The end is the opposite order. A part that fails ends the platform,
//! except capture: it stops loudly and the rest goes on.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use millrace_base::{Clock, Lsn, SystemClock, Tasks, files};
use millrace_cluster::{ClusterSpec, ClusterStatus, Supervisor};
use millrace_config::Pack;
use millrace_console::{Accounts, ConsoleState, Users as _};
use millrace_contract::{
    Reader, TableName,
    operate::Operator,
    status::{CaptureState, CaptureStatus, ListenerStatus},
    topology::{Origin, Replay},
};
use millrace_model::Models;
use millrace_pg::ConnectParams;
use millrace_warehouse::{
    DuckSink, Engine, EngineOptions, WriterHandle,
    reader::{DuckReader, ReaderOptions},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    observe::{Observatory, Parts},
    operator::{Access, PlatformOperator},
    prepare, proxy, reload, serve,
};
use crate::{
    commands::load,
    context::{CAPTURE_ROLE, Context, WAREHOUSE_ROLE},
    control,
    explain::explain,
    lock, logging,
    users::UserStore,
};

/// First start, base backups of large nodes included.
const PRIMARY_READY_MAX: Duration = Duration::from_secs(600);
const SERVICES_STOP_MAX: Duration = Duration::from_secs(30);
/// Longer than the cluster's own limits for each server.
const CLUSTER_STOP_MAX: Duration = Duration::from_secs(120);

/// What `up` was asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) sample: bool,
    pub(crate) simulate: Option<f64>,
    pub(crate) recopy: bool,
    pub(crate) log_filter: Option<String>,
    /// A terminal is there to read warnings.
    pub(crate) foreground: bool,
}

/// Runs until asked to stop. `Ok(false)`: another process runs this platform already.
pub(crate) async fn run(context: Context, start: Start) -> anyhow::Result<bool> {
    let context = Arc::new(context);
    let layout = context.layout.clone();
    make_folders(&context)?;
    let Some(_lock) = take_lock(&context).await? else { return Ok(false) };
    logging::to_file(&layout.platform_log(), start.log_filter.as_deref(), start.foreground)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), platform = %context.config.platform.name, "platform starts");
    // of a restore that was killed
    crate::in_place::clear(&context).await?;
    crate::programs::clear(&context);
    let stop = CancellationToken::new();
    let mut cluster_tasks = Tasks::new(CancellationToken::new());
    let mut services = Tasks::new(CancellationToken::new());
    stop_on_signals(&mut services, &stop)?;

    let result = live(&context, &start, &stop, &mut cluster_tasks, &mut services).await;
    finish(&context, cluster_tasks, services, result).await.map(|()| true)
}

/// Stops what runs, the servers last; the first thing that went wrong is told.
pub(super) async fn finish(
    context: &Context,
    cluster: Tasks,
    services: Tasks,
    result: anyhow::Result<()>,
) -> anyhow::Result<()> {
    context.output.line("stopping");
    tracing::info!("stops");
    let mut failed = services.shutdown(SERVICES_STOP_MAX).await;
    failed.extend(cluster.shutdown(CLUSTER_STOP_MAX).await);
    for error in &failed {
        tracing::error!(error = %crate::explain::chain(error), "a part ended badly");
    }
    tracing::info!("stopped");
    result?;
    if let Some(error) = failed.into_iter().next() {
        return Err(explain(&error, Some(format!("see {}", context.layout.platform_log().display()))));
    }
    context.output.line("stopped");
    Ok(())
}

/// The platform's lock; `None`, and said so, if a live platform has it.
pub(super) async fn take_lock(context: &Context) -> anyhow::Result<Option<lock::PlatformLock>> {
    let path = context.layout.lock();
    let mut taken = lock::take(&path)?;
    let client = control::Client::new(context.layout.run());
    let mut answers = true;
    if taken.is_err() && client.get::<bool>("/ready", Duration::from_secs(5)).await.is_err() {
        // it starts, or it was killed a moment ago
        lock::wait_free(&path, lock::DYING_MAX).await?;
        taken = lock::take(&path)?;
        answers = client.get::<bool>("/ready", Duration::from_secs(5)).await.is_ok();
    }
    match taken {
        Ok(lock) => Ok(Some(lock)),
        Err(held) => {
            let pid = held.pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            if !answers {
                bail!(
                    "the platform's lock is held{pid}, by none that answers\n  hint: wait for a `millrace nuke`; else see `millrace logs`"
                );
            }
            let name = &context.config.platform.name;
            context.output.line(format!("{name} runs already{pid}: {}", context.console_url()));
            Ok(None)
        }
    }
}

/// Makes the folders of a platform that are not there yet.
pub(crate) fn make_folders(context: &Context) -> anyhow::Result<()> {
    let layout = &context.layout;
    // servers must be able to pass to their own folders, and to nothing else
    for (folder, mode) in [
        (layout.data().to_owned(), 0o711),
        (layout.nodes(), 0o711),
        (layout.run(), 0o700),
        (layout.logs(), 0o700),
        (layout.cluster(), 0o700),
        (layout.warehouse(), 0o700),
    ] {
        files::create_dir_all(&folder, mode).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(())
}

pub(super) fn stop_on_signals(tasks: &mut Tasks, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, own) = (stop.clone(), tasks.token().clone());
    tasks.spawn("signals", async move {
        // a signal that is not waited for is not lost: it is the default action that is replaced
        tokio::select! {
            _ = interrupt.recv() => stop.cancel(),
            _ = terminate.recv() => stop.cancel(),
            () = own.cancelled() => {}
        }
        Ok::<_, std::convert::Infallible>(())
    });
    Ok(())
}

/// SIGHUP reads settings anew, as `millrace proxy reload` does. It also comes when the terminal is closed that a
/// platform in the foreground belongs to: that is a stop.
fn reload_on_hangup(proxy: millrace_proxy::Handle, tasks: &mut Tasks, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let on_terminal = io::stdin().is_terminal();
    let (stop, own) = (stop.clone(), tasks.token().clone());
    tasks.spawn("hangup", async move {
        loop {
            // neither loses anything when dropped
            tokio::select! {
                () = own.cancelled() => return Ok::<_, std::convert::Infallible>(()),
                received = hangup.recv() => if received.is_none() {
                    own.cancelled().await;
                    return Ok(());
                },
            }
            if on_terminal && !io::stdin().is_terminal() {
                stop.cancel();
                continue;
            }
            match proxy.reread().await {
                Ok(reloaded) => {
                    tracing::info!(changed = ?reloaded.changed, waits = ?reloaded.waits, "reloaded by SIGHUP")
                }
                Err(error) => tracing::warn!(%error, "SIGHUP has changed nothing"),
            }
        }
    });
    Ok(())
}

/// Everything between the lock and the stop.
async fn live(
    context: &Arc<Context>,
    start: &Start,
    stop: &CancellationToken,
    cluster_tasks: &mut Tasks,
    services: &mut Tasks,
) -> anyhow::Result<()> {
    let config = &context.config;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let console_address = (config.console.listen, config.console.port).into();
    let warehouse_address = (config.warehouse.listen, config.warehouse.port).into();
    let console_listener = serve::bind("console", console_address)?;
    let warehouse_listener = serve::bind("warehouse", warehouse_address)?;
    // agents have proxies of their own
    let together = config.etcd.is_none();
    let proxy_listeners = if together { proxy::bind(context)? } else { Vec::new() };
    let control_listener = control::bind(&context.layout.run())?;

    if start.recopy {
        for kept in set_warehouse_aside(context, clock.as_ref())? {
            context.output.line(format!("  the old warehouse is kept as {}", kept.display()));
        }
    }
    let models = Arc::new(models(context)?);
    let engine = open_warehouse(context)?;
    let sink = DuckSink::open(engine.clone(), models.clone(), clock.clone())
        .map_err(|error| explain(&error, Some(error.hint())))?;
    let writer = sink.handle();
    let reader: Arc<dyn Reader> = DuckReader::new(engine.clone(), &ReaderOptions::default(), services.token())
        .map_err(|error| explain(&error, error.hint.clone()))?;

    let spec = context.agent_spec(None)?;
    let (supervisor, mut cluster) =
        Supervisor::new(spec.clone(), clock.clone()).map_err(|error| explain(&error, error.hint()))?;
    let (topology, followed) = millrace_cluster::topology::channel();
    let replay = Arc::default();
    let proxy = millrace_proxy::Proxy::start(proxy_listeners, proxy::options(context, Arc::clone(&replay))?, followed)?;
    let cluster_handle = supervisor.handle();
    let cluster_token = cluster_tasks.token().clone();
    cluster_tasks.spawn("cluster", supervisor.run(cluster_token));

    let (repo, backup) = super::archive::spawn(context, cluster.clone(), clock.clone(), services)?.unzip();
    let (capture_status, capture_watch) = watch::channel(CaptureStatus {
        state: CaptureState::Waiting { reason: "the primary starts".into() },
        watermark: Lsn::INVALID,
        source_lsn: Lsn::INVALID,
        lag_bytes: 0,
        lag_ms: 0,
        changes_applied: 0,
        quarantined: Vec::new(),
    });
    let (commands, command_receiver) = mpsc::channel(16);
    let operator = Arc::new(PlatformOperator {
        context: context.clone(),
        restorable: super::restorable::Restorable::new(context.clone(), repo),
        observatory: Observatory::new(
            config.platform.name.clone(),
            clock.clone(),
            Parts {
                cluster: cluster.clone(),
                capture: capture_watch.clone(),
                reader: reader.clone(),
                writer: writer.clone(),
                proxy: proxy.handle(),
                backup,
            },
            listeners(context),
            vec![context.layout.data().to_owned(), context.layout.warehouse()],
        ),
        access: access(context)?,
        cluster: cluster_handle,
        cluster_folder: context.layout.cluster(),
        reader: reader.clone(),
        engine,
        writer: writer.clone(),
        pack_dir: config.pack_dir.clone(),
        capture: commands,
        catalog: Arc::new(context.pack.catalog.clone()),
        accounts: std::sync::OnceLock::new(),
        ready: watch::Sender::new(false),
        stop: stop.clone(),
    });
    reload::Reloader::new(context.clone(), cluster.clone(), operator.access.roles.clone()).serve(&proxy.handle());
    reload_on_hangup(proxy.handle(), services, stop)?;
    services.spawn("control", serve::control(control_listener, operator.clone(), services.token().clone()));

    let primary = wait_for_primary(context, &mut cluster, stop, cluster_tasks, services).await?;
    let Some(primary) = primary else { return Ok(()) };
    let prepared = tokio::select! {
        // every step is a transaction: a stop leaves it undone
        prepared = Box::pin(prepared(context, start, &primary, &writer, &models)) => prepared?,
        () = stop.cancelled() => return Ok(()),
    };
    // roles and databases are there: applications may come
    let origin = follow_cluster(spec, &cluster, replay, services);
    proxy::spawn(proxy, topology, cluster, &config.proxy, services);
    operator.access.publish(&prepared.tables);
    let options = capture_options(context, &primary, origin, prepared)?;
    spawn_capture(options, sink, command_receiver, capture_status, clock.clone(), services);

    let users = Arc::new(UserStore::new(Context::clone(context)));
    let accounts = operator.accounts.get_or_init(|| Arc::new(Accounts::new(users.clone(), clock.clone()))).clone();
    let tls = config.tls().server_config(&[b"h2", b"http/1.1"])?;
    let router = millrace_console::router(ConsoleState {
        catalog: operator.catalog.clone(),
        reader: reader.clone(),
        operator: operator.clone() as Arc<dyn Operator>,
        accounts: accounts.clone(),
        session_key: context.secrets.console_session_key.clone(),
        clock: clock.clone(),
        name: format!("Millrace · {}", config.platform.name),
        tls: true,
        shutdown: services.token().clone(),
    });
    services.spawn("console", serve::console(console_listener, tls, router, services.token().clone()));
    spawn_endpoint(context, warehouse_listener, reader, services)?;

    if let Some(rate) = start.simulate {
        spawn_simulation(context, rate, services);
    }
    wait_for_data(context, capture_watch, stop, services).await?;
    if stop.is_cancelled() {
        return Ok(());
    }
    // made only now: a password that was made is shown
    let first_password = first_user(&users, &accounts).await?;
    announce(context, first_password.as_ref());
    operator.ready.send_replace(true);
    until_stopped(stop, cluster_tasks, services).await
}

/// The tables to capture, and those of them to copy anew.
struct Captured {
    tables: Vec<TableName>,
    anew: Vec<TableName>,
}

/// Roles, schema, sample data, models and publication on a primary that has just become ready. The models come
/// after the migrations, which may add what they need.
async fn prepared(
    context: &Context,
    start: &Start,
    primary: &ConnectParams,
    writer: &WriterHandle,
    models: &Arc<Models>,
) -> anyhow::Result<Captured> {
    for script in prepare::run(context, primary).await?.migrations_applied {
        context.output.line(format!("  migrated {script}"));
    }
    if start.sample {
        sample(context, primary).await?;
    }
    let admin = admin(context, primary).await?;
    let explained = |error: millrace_capture::CaptureError| explain(&error, Some(error.hint()));
    let say = |line: String| context.output.line(line);
    let wanted = super::models::build(&admin, writer, models, say).await.map_err(explained)?;
    if wanted.tables.is_empty() {
        bail!("the models need no table that can be captured\n  hint: `millrace check`, and the lines above, say why");
    }
    let publication = &context.config.capture.publication;
    let prepared = millrace_capture::prepare(&admin, publication, &wanted.tables).await.map_err(explained)?;
    let mut anew = prepared.added;
    anew.extend(wanted.lacking);
    Ok(Captured { tables: wanted.tables, anew })
}

/// The pack's declarations; every mistake of every file in one error.
pub(crate) fn parse_models(pack: &Pack) -> anyhow::Result<Models> {
    let files = pack.models.iter().map(|file| (file.path.to_str().unwrap_or(&file.name), file.text.as_str()));
    Models::parse(files).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })
}

/// As [`parse_models`], of a platform.
pub(crate) fn models(context: &Context) -> anyhow::Result<Models> {
    parse_models(&context.pack)
}

fn open_warehouse(context: &Context) -> anyhow::Result<Arc<Engine>> {
    let options = EngineOptions {
        memory_limit: format!("{}MiB", context.config.warehouse.memory_limit_bytes >> 20),
        threads: context.config.warehouse.threads,
        temp_directory: context.layout.warehouse().join("temp"),
    };
    Engine::open(&context.layout.warehouse_file(), options).map_err(|error| explain(&error, Some(error.hint())))
}

/// Keeps the warehouse's files under another name: capture then copies everything anew. Where they are now.
pub(crate) fn set_warehouse_aside(context: &Context, clock: &dyn Clock) -> anyhow::Result<Vec<PathBuf>> {
    let file = context.layout.warehouse_file();
    let now = clock.wall().0 / 1_000_000;
    let mut kept = Vec::new();
    for suffix in ["", ".wal"] {
        let mut from = file.clone().into_os_string();
        from.push(suffix);
        let mut to = file.clone().into_os_string();
        to.push(format!(".{now}{suffix}"));
        match std::fs::rename(&from, &to) {
            Ok(()) => kept.push(PathBuf::from(to)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot set aside {}", from.display())),
        }
    }
    Ok(kept)
}

fn listeners(context: &Context) -> Vec<ListenerStatus> {
    let config = &context.config;
    let listener = |name: &str, address: String| ListenerStatus { name: name.into(), address };
    let mut listeners = vec![listener("console", context.console_url())];
    if config.etcd.is_none() {
        let proxy = &config.proxy;
        listeners.push(listener("proxy", format!("{}:{}", proxy.listen, proxy.port)));
        listeners.push(listener("read-only", format!("{}:{}", proxy.listen, proxy.read_only_port)));
    }
    listeners.push(listener("warehouse", format!("{}:{}", config.warehouse.listen, config.warehouse.port)));
    listeners
}

fn access(context: &Context) -> anyhow::Result<Access> {
    let login = context.login_roles()?;
    let role = |name: &str| login.iter().find(|(role, ..)| role == name).map(|(_, password, _)| password.clone());
    let database = context.pack.database.clone();
    let capture = role(CAPTURE_ROLE).ok_or_else(|| {
        anyhow!("the pack has no role {CAPTURE_ROLE}, as which capture reads\n  hint: add it to [[roles]] in pack.toml")
    })?;
    Ok(Access {
        superuser: context.superuser(0)?,
        roles: watch::Sender::new(reload::roles(context)?),
        capture_role: (CAPTURE_ROLE.to_owned(), capture, database),
        endpoint: context.warehouse()?,
        secrets_file: context.config.secrets_path(),
        publication: context.config.capture.publication.clone(),
        published: std::sync::OnceLock::new(),
        migrations: prepare::migrations(context),
    })
}

async fn admin(context: &Context, primary: &ConnectParams) -> anyhow::Result<millrace_pg::Connection> {
    use crate::explain::Explained as _;
    millrace_pg::connect(&primary.to_database(&context.pack.database), Duration::from_secs(20)).await.explained()
}

/// Tells how far replicas are and where the log comes from, and keeps the slots of replicas up with the primary's.
fn follow_cluster(
    spec: ClusterSpec,
    cluster: &watch::Receiver<ClusterStatus>,
    replay: Arc<Replay>,
    services: &mut Tasks,
) -> watch::Receiver<Option<Origin>> {
    let (origin, followed) = watch::channel(None);
    let (of, status, token) = (spec.clone(), cluster.clone(), services.token().clone());
    services.spawn("replay", async move { millrace_cluster::replay::follow(&of, status, replay, origin, token).await });
    // where each node has an agent, that does it
    if spec.agent.is_none() {
        let (of, status, token) = (spec.clone(), cluster.clone(), services.token().clone());
        services.spawn("slots", async move { millrace_cluster::logical::follow(&of, status, token).await });
        let (status, token) = (cluster.clone(), services.token().clone());
        services.spawn("sockets", async move { millrace_cluster::cut::follow(&spec, status, token).await });
    }
    followed
}

/// Waits for the primary, saying what the nodes do; `None` when asked to stop meanwhile.
async fn wait_for_primary(
    context: &Context,
    cluster: &mut watch::Receiver<ClusterStatus>,
    stop: &CancellationToken,
    cluster_tasks: &mut Tasks,
    services: &mut Tasks,
) -> anyhow::Result<Option<ConnectParams>> {
    let mut told = std::collections::BTreeMap::new();
    let waiting = async {
        loop {
            let status = cluster.borrow_and_update().clone();
            for node in &status.nodes {
                if told.get(&node.name) != Some(&node.doing) {
                    context.output.line(format!("  node {}: {}", node.name, node.doing));
                    told.insert(node.name.clone(), node.doing.clone());
                }
            }
            if status.primary_ready {
                return status.primary.map(|name| context.superuser_of(&name)).transpose();
            }
            if cluster.changed().await.is_err() {
                bail!("the cluster's supervisor ended");
            }
        }
    };
    tokio::select! {
        primary = tokio::time::timeout(PRIMARY_READY_MAX, waiting) => {
            primary.context("the primary was not ready within ten minutes\n  hint: see `millrace logs`")?
        }
        () = stop.cancelled() => Ok(None),
        ended = first_end(cluster_tasks, services) => Err(ended),
    }
}

/// The first part that ends; while the platform lives none may.
pub(super) async fn first_end(cluster_tasks: &mut Tasks, services: &mut Tasks) -> anyhow::Error {
    loop {
        // both lose nothing when dropped
        let ended = tokio::select! {
            Some(ended) = cluster_tasks.join_next() => ended,
            Some(ended) = services.join_next() => ended,
            else => return anyhow!("every part ended"),
        };
        match ended {
            // the signal handler's end is the stop itself; capture stops loudly by itself
            Ok("signals" | "capture" | "simulation") => {}
            Ok(name) => return anyhow!("part {name} ended"),
            Err(error) => return explain(&error, None),
        }
    }
}

async fn sample(context: &Context, primary: &ConnectParams) -> anyhow::Result<()> {
    context.output.line("  sample data at scale 1");
    if !load::sample_if_empty(context, primary).await? {
        context.output.line("    not needed: there is data already");
    }
    Ok(())
}

fn capture_options(
    context: &Context,
    primary: &ConnectParams,
    origin: watch::Receiver<Option<Origin>>,
    captured: Captured,
) -> anyhow::Result<millrace_capture::CaptureOptions> {
    let config = &context.config.capture;
    let source = ConnectParams {
        host: primary.host.clone(),
        port: primary.port,
        application_name: "millrace capture".into(),
        ..context.as_role(CAPTURE_ROLE)?
    };
    let mut options = millrace_capture::CaptureOptions::new(source, captured.tables, context.layout.spill());
    options.slot.clone_from(&config.slot);
    options.publication.clone_from(&config.publication);
    options.added = captured.anew;
    options.origin = Some(origin);
    options.copy_connections = config.copy_workers;
    options.batch_age = config.batch_interval;
    options.batch_bytes_max = usize::try_from(config.batch_bytes_max).unwrap_or(usize::MAX);
    Ok(options)
}

fn spawn_capture(
    options: millrace_capture::CaptureOptions,
    sink: DuckSink,
    commands: mpsc::Receiver<millrace_capture::Command>,
    status: watch::Sender<CaptureStatus>,
    clock: Arc<dyn Clock>,
    services: &mut Tasks,
) {
    let token = services.token().clone();
    services.spawn("capture", async move {
        if let Err(error) = millrace_capture::run(options, sink, commands, status, clock, token).await {
            // its status says so to everyone; the rest of the platform goes on
            tracing::error!(error = %crate::explain::chain(&error), hint = %error.hint(), "capture stopped");
        }
        Ok::<_, std::convert::Infallible>(())
    });
}

/// The first console user, if there is none: its name and password are shown once.
async fn first_user(users: &UserStore, accounts: &Accounts) -> anyhow::Result<Option<(String, millrace_base::Secret)>> {
    if users.count().await? > 0 {
        return Ok(None);
    }
    let password = millrace_base::Secret::generate();
    accounts.set_password("admin", password.clone()).await?;
    Ok(Some(("admin".to_owned(), password)))
}

fn spawn_endpoint(
    context: &Context,
    listener: std::net::TcpListener,
    reader: Arc<dyn Reader>,
    services: &mut Tasks,
) -> anyhow::Result<()> {
    let tls = context.config.tls().server_config(&[])?;
    let users = millrace_endpoint::Users::default().with(WAREHOUSE_ROLE, &context.secrets.warehouse_reader);
    let limits = millrace_endpoint::Limits { sessions: context.config.warehouse.max_connections, ..Default::default() };
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let token = services.token().clone();
    services.spawn("endpoint", millrace_endpoint::Endpoint::serve(listener, tls, users, reader, limits, token));
    Ok(())
}

/// Live customers beside the platform; trouble of theirs is not the platform's.
fn spawn_simulation(context: &Arc<Context>, rate: f64, services: &mut Tasks) {
    let (context, token) = (context.clone(), services.token().clone());
    services.spawn("simulation", async move {
        if let Err(error) = load::act(&context, rate, 1, token, |_| {}).await {
            tracing::warn!(%error, "the simulated customers stopped");
        }
        Ok::<_, std::convert::Infallible>(())
    });
}

/// Waits until the warehouse has the data, saying how far it is; a capture that stopped is no reason to wait.
async fn wait_for_data(
    context: &Context,
    mut capture: watch::Receiver<CaptureStatus>,
    stop: &CancellationToken,
    services: &mut Tasks,
) -> anyhow::Result<()> {
    let waiting = async {
        let mut told = String::new();
        loop {
            let status = capture.borrow_and_update().clone();
            let line = match &status.state {
                CaptureState::Streaming => return Ok(()),
                // what is there can be read; what is wrong is a finding
                CaptureState::Retrying { error, hint, .. } if status.watermark.is_valid() => {
                    context
                        .output
                        .line(format!("  {} {error}\n    → {hint}", context.output.yellow("capture tries again:")));
                    return Ok(());
                }
                CaptureState::Stopped { error, hint, .. } => {
                    context.output.line(format!("  {} {error}\n    → {hint}", context.output.red("capture stopped:")));
                    return Ok(());
                }
                CaptureState::Copying { tables_done, tables, .. } => {
                    format!("  warehouse: {tables_done} of {tables} tables copied")
                }
                CaptureState::Waiting { reason } => format!("  capture waits: {reason}"),
                CaptureState::Retrying { error, .. } => format!("  capture tries again: {error}"),
            };
            if line != told {
                context.output.line(&line);
                told = line;
            }
            capture.changed().await.context("capture ended")?;
        }
    };
    let mut waiting = std::pin::pin!(waiting);
    loop {
        tokio::select! {
            // a capture that stopped has said so before its task ends
            biased;
            waited = &mut waiting => return waited,
            () = stop.cancelled() => return Ok(()),
            ended = services.join_next() => match ended {
                // what stops by itself stops loudly, and the data still come
                Some(Ok("signals" | "capture" | "simulation")) => {}
                Some(Ok(name)) => bail!("part {name} ended"),
                Some(Err(error)) => return Err(explain(&error, None)),
                None => bail!("every part ended"),
            },
        }
    }
}

fn announce(context: &Context, first_password: Option<&(String, millrace_base::Secret)>) {
    let output = context.output;
    output.line(format!("\n{} is up", output.bold(&context.config.platform.name)));
    output.line(format!("  console    {}", output.bold(&context.console_url())));
    if let Some((user, password)) = first_password {
        output.line(format!(
            "             user {user}, password {} {}",
            password.reveal(),
            output.faint("(shown this once)")
        ));
    }
    output.line("  warehouse  millrace psql warehouse");
    output.line("  primary    millrace psql primary");
    output.line("  health     millrace status");
    output.line(output.faint("  the browser asks once: the certificate is this platform's own (tls/ca.crt)"));
}

async fn until_stopped(
    stop: &CancellationToken,
    cluster_tasks: &mut Tasks,
    services: &mut Tasks,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = first_end(cluster_tasks, services) => Err(ended),
    }
}
