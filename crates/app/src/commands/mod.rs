//! What each word does: most ask the running platform over its control socket, the others work on
//! the files or on the primary directly.

mod backup;
mod backup_info;
mod clone;
mod cluster;
mod dump;
mod lifecycle;
pub(crate) mod load;
mod logs;
mod progress;
mod proxy;
pub(crate) mod ps;
pub(crate) mod psql;
mod report;
mod show;
mod wal;

use std::time::Duration;

use anyhow::Context as _;
use millrace_base::{Clock, SystemClock};
use millrace_config::{Environment, Pack, fallback_data_dir};
use millrace_contract::{
    operate::{Check, Proof},
    status::{NodeRole, PlatformStatus, is_healthy},
};
use millrace_pg::RunAs;

use crate::{
    cli::{Cli, Command, Init, MigrateCommand, ModelCommand, UserCommand},
    context::{self, Context},
    control::Client,
    explain::{Explained, Usage, explain},
    lock, logging,
    output::{Output, table},
    platform::{ClusterView, ModelReport, prepare},
    users::UserStore,
};

const SHORT: Duration = Duration::from_secs(30);
/// Comparing, checking and rebuilding may take long on large data.
const LONG: Duration = Duration::from_secs(6 * 3600);

/// Runs one command; the value is the exit code.
pub(crate) fn run(cli: Cli, environment: Environment, output: Output) -> anyhow::Result<u8> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(Box::pin(dispatch(cli, environment, output)))
}

async fn dispatch(cli: Cli, environment: Environment, output: Output) -> anyhow::Result<u8> {
    let folder = context::folder(cli.global.dir.as_ref(), &environment);
    if !matches!(cli.command, Command::Up(_) | Command::Agent { .. }) {
        logging::to_terminal(environment.log.as_deref())?;
    }
    let agent = || Context::load(&folder, output);
    let load = || agent().map(Context::of_platform);
    match cli.command {
        Command::Init(options) => init(&options, output),
        Command::Check => check(&load()?),
        Command::Up(options) => lifecycle::up(load()?, &options, &environment).await,
        Command::Agent { node } => lifecycle::agent(agent()?, &node, &environment).await,
        Command::Down => lifecycle::down(&agent()?).await,
        Command::Nuke { yes } => lifecycle::nuke(&agent()?, yes).await,
        Command::Status(options) => status(&load()?, options.watch).await,
        Command::Health => health(&load()?).await,
        Command::Ps => processes(&load()?).await,
        Command::Logs(options) => {
            let context = agent()?;
            logs::run(&options, &log_files(&context), output).await.map(|()| 0)
        }
        Command::Psql(options) => open_psql(&load()?, &options).await,
        Command::Verify => {
            let checks: Vec<Check> = client(&load()?).post("/verify", &(), LONG).await?;
            output.json(&checks)?;
            output.line(show::checks(&checks, output));
            Ok(u8::from(checks.iter().any(|check| !check.passed)))
        }
        Command::Prove => {
            let proof: Proof = client(&load()?).post("/prove", &(), LONG).await?;
            output.json(&proof)?;
            output.line(show::proof(&proof, output));
            Ok(u8::from(!proof.is_clean()))
        }
        Command::Resync { table } => {
            let () = client(&load()?).post(&format!("/resync/{table}"), &(), LONG).await?;
            output.line(format!("{table} was copied anew"));
            output.json(&serde_json::json!({ "resynced": table }))?;
            Ok(0)
        }
        Command::Load(options) => load::run(&load()?, &options).await,
        Command::Simulate(options) => load::simulate(&load()?, &options).await,
        Command::Cluster(command) => cluster::run(&agent()?.of_cluster()?, &command).await,
        Command::Backup { repository, command } => backup::run(&load()?, repository.as_deref(), &command).await,
        Command::Wal { repository, command } => wal::run(&load()?, repository.as_deref(), &command).await,
        Command::Clone(command) => clone::run(&load()?, &command).await,
        Command::Proxy(command) => proxy::run(&load()?, &command).await,
        Command::Migrate(command) => migrate(&load()?, &command).await,
        Command::Model(command) => model(&load()?, &command).await,
        Command::Report(command) => report::run(&load()?, &command).await,
        Command::User(command) => user(&load()?, &command).await,
        Command::Bench(options) => Box::pin(crate::bench::run(&options, output)).await.map(|()| 0),
    }
}

fn client(context: &Context) -> Client {
    Client::new(context.layout.run())
}

fn init(options: &Init, output: Output) -> anyhow::Result<u8> {
    let pack = Pack::find(&options.pack).explained()?;
    let target = std::path::absolute(&options.target)?;
    let mut how = millrace_config::InitOptions {
        base_port: options.base_port,
        hosts: options.host.clone(),
        etcd: options.etcd.clone(),
        backup_key: Some(crate::backup::new_key()),
        ..Default::default()
    };
    if let Some(folder) = &options.data_dir {
        how.data_dir = Some((std::path::absolute(folder)?, "chosen at init".to_owned()));
    } else if let Ok(user) = RunAs::resolve(None)
        && let Err(blocked) = user.check_reachable(&target.join("data"))
    {
        how.data_dir = Some((fallback_data_dir(&pack.name, &target), blocked.to_string()));
    }
    let report = millrace_config::init(&target, &pack, &how, SystemClock::new().wall()).explained()?;
    let folder = options.target.display();
    output.line(format!("made {folder} from pack {}", pack.name));
    output.line("  millrace.toml   what runs where; explained inside");
    output.line(
        "  secrets.toml    generated passwords and the key of backups, readable by you alone: keep a copy elsewhere",
    );
    output.line("  tls/            this platform's own certificate authority");
    output.line("  pack/           your copy of the pack: SQL and TOML to make your own");
    if let Some((_, reason)) = &how.data_dir {
        output.line(format!("  data goes to {}: {reason}", report.data_dir.display()));
    }
    if how.etcd.iter().any(|endpoint| endpoint.starts_with("https://")) {
        output.line(format!("  {folder}/tls/etcd-ca.crt is to be the authority of etcd's certificates: copy it there"));
    }
    match how.hosts.is_empty() {
        true => output.line(format!("next: millrace up --dir {folder}")),
        false => {
            output.line(format!("next: copy {folder} to each host, then there: millrace agent NODE --dir {folder}"))
        }
    }
    output.json(&serde_json::json!({ "dir": target, "data_dir": report.data_dir, "pack": pack.name }))?;
    Ok(0)
}

/// Configuration, secrets and pack were read strictly by then; the rest is what needs no server.
fn check(context: &Context) -> anyhow::Result<u8> {
    let spec = context.agent_spec(None)?;
    let models = crate::platform::parse_models(&context.pack)?;
    context.config.tls().server_config(&[])?;
    let output = context.output;
    let summary = [
        ("configuration", format!("{} nodes, console {}", spec.nodes.len(), context.console_url())),
        (
            "PostgreSQL",
            format!(
                "{} in {}, servers run as {}",
                spec.binaries.version(),
                spec.binaries.folder().display(),
                spec.run_as.name()
            ),
        ),
        ("secrets", format!("{} roles, file closed to others", context.login_roles()?.len())),
        ("certificates", "readable, key and certificate belong together".to_owned()),
        (
            "pack",
            format!(
                "{} {}: {} migrations, {} models, {} reports, {} dashboards",
                context.pack.name,
                context.pack.version,
                context.pack.migrations.len(),
                models.iter().count(),
                context.pack.catalog.reports.len(),
                context.pack.catalog.dashboards.len()
            ),
        ),
    ];
    for (what, detail) in &summary {
        output.line(format!("{} {what:<14} {detail}", output.green("✔")));
    }
    output.json(
        &summary.iter().map(|(what, detail)| serde_json::json!({ "what": what, "detail": detail })).collect::<Vec<_>>(),
    )?;
    Ok(0)
}

/// The agent of this host, if the platform itself runs on another.
fn agent_alone(context: &Context) -> anyhow::Result<Option<Context>> {
    let agent = context.clone().of_cluster()?;
    let alone = agent.layout.lock() != context.layout.lock() && lock::holder(&context.layout.lock())?.is_none();
    Ok(alone.then_some(agent))
}

async fn status(context: &Context, watch: bool) -> anyhow::Result<u8> {
    let output = context.output;
    let agent = agent_alone(context)?;
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    loop {
        let begin = || output.raw(if watch { "\x1b[2J\x1b[H" } else { "" });
        if let Some(agent) = &agent {
            cluster::status(agent, begin).await?;
            output.line(format!("{:<10} runs on another host, or is to be started: `millrace up`", "platform"));
        } else {
            let status: PlatformStatus = client(context).get("/status", SHORT).await?;
            begin();
            output.json(&status)?;
            output.line(show::status(&status, output));
        }
        if !watch {
            return Ok(0);
        }
        tick.tick().await;
        tokio::select! {
            _ = tick.tick() => {}
            interrupted = tokio::signal::ctrl_c() => return interrupted.map(|()| 0).context("cannot wait for Ctrl-C"),
        }
    }
}

async fn health(context: &Context) -> anyhow::Result<u8> {
    let findings = match agent_alone(context)? {
        Some(agent) => client(&agent).get::<ClusterView>("/cluster", SHORT).await?.findings,
        None => client(context).get::<PlatformStatus>("/status", SHORT).await?.findings,
    };
    let healthy = is_healthy(&findings);
    let output = context.output;
    output.json(&serde_json::json!({ "healthy": healthy, "findings": findings }))?;
    match healthy {
        true => output.line(output.green("healthy")),
        false => output.line(show::findings(&findings, SystemClock::new().wall(), output).trim_end()),
    }
    Ok(u8::from(!healthy))
}

async fn processes(context: &Context) -> anyhow::Result<u8> {
    let status: PlatformStatus = client(context).get("/status", SHORT).await?;
    let mut processes: Vec<_> = ps::read(status.pid, "millrace").into_iter().collect();
    // elsewhere the number is another process's
    for node in status.nodes.iter().filter(|_| context.config.etcd.is_none()) {
        processes.extend(node.pid.and_then(|pid| ps::read(pid, &format!("node {}", node.name))));
    }
    ps::show(&processes, context.output)?;
    Ok(0)
}

fn log_files(context: &Context) -> Vec<(String, std::path::PathBuf)> {
    let nodes =
        context.config.cluster.nodes.iter().map(|node| (node.name.clone(), context.layout.node_log(&node.name)));
    let beside = context.clone().of_platform().layout.platform_log();
    let beside = context.config.etcd.is_some().then(|| ("platform".to_owned(), beside));
    std::iter::once(("millrace".to_owned(), context.layout.platform_log())).chain(beside).chain(nodes).collect()
}

async fn open_psql(context: &Context, options: &crate::cli::Psql) -> anyhow::Result<u8> {
    let database = context.pack.database.clone();
    let params = if options.target == "warehouse" {
        context.warehouse()?
    } else if options.target == millrace_proxy::CONSOLE_DATABASE {
        context.proxy_console()?
    } else if let Ok(port) = options.target.parse::<u16>() {
        crate::recovered::superuser(context, port)?.to_database(database)
    } else {
        let node = node_of(context, &options.target).await?;
        context.superuser_of(&node)?.to_database(database)
    };
    // servers must be able to pass to their own folders
    for (folder, mode) in [(context.layout.data().to_owned(), 0o711), (context.layout.run(), 0o700)] {
        millrace_base::files::create_dir_all(&folder, mode)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let program = millrace_pg::Binaries::find(context.config.postgres.bin_dir.as_deref())
        .map_or_else(|_| "psql".into(), |binaries| binaries.program("psql"));
    psql::run(&params, &program, &context.layout.pgpass(), &context.config.tls().ca_cert(), &options.arguments).await
}

/// `primary`, `replica1` … by role as the platform sees it now, else a node's name.
async fn node_of(context: &Context, target: &str) -> anyhow::Result<String> {
    if context.config.cluster.nodes.iter().any(|node| node.name == target) {
        return Ok(target.to_owned());
    }
    let view: ClusterView = client(&context.clone().of_cluster()?).get("/cluster", SHORT).await?;
    let nth = |role: NodeRole, nth: usize| {
        view.nodes.iter().filter(|node| node.role == role).nth(nth).map(|node| node.name.clone())
    };
    let found = match target.strip_prefix("replica") {
        Some(number) => number.parse::<usize>().ok().and_then(|number| nth(NodeRole::Replica, number.checked_sub(1)?)),
        None if target == "primary" => nth(NodeRole::Primary, 0),
        None => None,
    };
    found.ok_or_else(|| {
        let names: Vec<_> = context.config.cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        Usage(format!(
            "there is no `{target}`\n  hint: one of primary, replica1, replica2, warehouse, pgbouncer, {}",
            names.join(", ")
        ))
        .into()
    })
}

async fn migrate(context: &Context, command: &MigrateCommand) -> anyhow::Result<u8> {
    let output = context.output;
    let primary = context.primary()?;
    if let MigrateCommand::Up = command {
        let applied = prepare::migrate(context, &primary).await?;
        output.json(&serde_json::json!({ "applied": applied }))?;
        output.line(if applied.is_empty() {
            "nothing to apply".to_owned()
        } else {
            format!("applied {}", applied.join(", "))
        });
        return Ok(0);
    }
    let mut client = millrace_pg::connect(&primary.to_database(&context.pack.database), SHORT).await.explained()?;
    let migrations = prepare::migrations(context);
    let status = millrace_migrate::status(client.client_mut(), &migrations)
        .await
        .map_err(|error| explain(&error, error.hint()))?;
    output.json(&status)?;
    let rows: Vec<Vec<String>> = status
        .iter()
        .map(|one| {
            vec![
                one.version.clone().unwrap_or_default(),
                one.description.clone(),
                one.script.clone(),
                state_text(&one.state),
            ]
        })
        .collect();
    output.line(table(&["version", "description", "script", "state"], &rows));
    if let MigrateCommand::Validate = command {
        millrace_migrate::validate(client.client_mut(), &migrations)
            .await
            .map_err(|error| explain(&error, error.hint()))?;
        output.line(output.green("every applied script is as in the pack"));
    }
    Ok(0)
}

fn state_text(state: &millrace_migrate::State) -> String {
    use millrace_migrate::State;
    match state {
        State::Applied => "applied".into(),
        State::Pending => "pending".into(),
        State::Outdated => "changed, will run again".into(),
        State::Changed { .. } => "CHANGED since it ran".into(),
        State::Missing => "MISSING in the pack".into(),
        State::OutOfOrder { newest } => format!("OUT OF ORDER: {newest} ran already"),
        State::Failed => "FAILED in another tool".into(),
        State::BelowBaseline => "below baseline".into(),
    }
}

async fn model(context: &Context, command: &ModelCommand) -> anyhow::Result<u8> {
    let work = match command {
        ModelCommand::Plan => "plan",
        ModelCommand::Build => "build",
        ModelCommand::Rebuild => "rebuild",
    };
    let report: ModelReport = client(context).post(&format!("/model/{work}"), &(), LONG).await?;
    let output = context.output;
    output.json(&report)?;
    for change in &report.changes {
        output.line(change);
    }
    for held in &report.held {
        output.line(format!("{} {held}", output.red("✖")));
    }
    for note in &report.notes {
        output.line(format!("{} {note}", output.yellow("▲")));
    }
    if report.changes.is_empty() && report.held.is_empty() {
        output.line("nothing to do: every model is built as declared");
    } else if work != "plan" {
        output.line(output.faint(&format!("done in {} ms", report.duration_ms)));
    }
    Ok(u8::from(!report.held.is_empty()))
}

async fn user(context: &Context, command: &UserCommand) -> anyhow::Result<u8> {
    let output = context.output;
    let store = std::sync::Arc::new(UserStore::new(context.clone()));
    let exists = |names: &[String], name: &str| names.iter().any(|known| known == name);
    let names = store.names().await.explained()?;
    match command {
        UserCommand::List => {
            output.json(&names)?;
            output.line(names.join("\n"));
        }
        UserCommand::Add { name } if exists(&names, name) => {
            return Err(
                Usage(format!("there is a user {name} already\n  hint: millrace user reset-password {name}")).into()
            );
        }
        UserCommand::ResetPassword { name } if !exists(&names, name) => {
            return Err(Usage(format!("there is no user {name}\n  hint: millrace user list")).into());
        }
        UserCommand::Add { name } | UserCommand::ResetPassword { name } => {
            let password = millrace_base::Secret::generate();
            let users: std::sync::Arc<dyn millrace_console::Users> = store;
            millrace_console::users::create(&users, name, password.clone()).await?;
            tell_console(context, name).await;
            output.json(&serde_json::json!({ "user": name, "password": password.reveal() }))?;
            output.line(format!("user {name}, password {} (shown this once)", password.reveal()));
        }
        UserCommand::Remove { name } => {
            if !store.remove(name).await.explained()? {
                return Err(Usage(format!("there is no user {name}\n  hint: millrace user list")).into());
            }
            tell_console(context, name).await;
            output.json(&serde_json::json!({ "removed": name }))?;
            output.line(format!("removed {name}"));
        }
    }
    Ok(0)
}

/// The running console checks this user's sessions at once; without being told it does so within half a minute.
async fn tell_console(context: &Context, name: &str) {
    let told: anyhow::Result<()> =
        Client::new(context.layout.run()).post("/user-changed", &name, Duration::from_secs(5)).await;
    if let Err(error) = told {
        tracing::debug!(%error, "the running console was not told of a changed user");
    }
}
