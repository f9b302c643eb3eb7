//! `millrace clone` and `millrace backup restore-table`: a look into the past beside the running cluster.

use anyhow::{Context as _, bail};
use millrace_backup::{Files, plan::Target, repo::Repository};
use millrace_base::{Clock as _, Lsn, Micros, SystemClock, files, ident::Ident};
use millrace_pg::{ConnectParams, connect};
use tokio_util::sync::CancellationToken;

use super::{SHORT, backup::stop_on_interrupt, progress::Bar};
use crate::{
    backup,
    cli::{CloneCommand, CloneMake, Copied, RestoreTable},
    clone,
    context::Context,
    explain::{Explained as _, Usage},
    output::{bytes_text, table},
    programs::{self, Programs},
    recovered,
};

pub(super) async fn run(context: &Context, command: &CloneCommand) -> anyhow::Result<u8> {
    match command {
        CloneCommand::Make(options) => make(context, options).await,
        CloneCommand::List => list(context),
        CloneCommand::Remove { which: Copied::Port(port) } => {
            if !clone::remove(context, *port).await? {
                bail!("there is no copy on port {port}\n  hint: millrace clone list");
            }
            context.output.line(format!("removed the copy on port {port}"));
            Ok(0)
        }
        CloneCommand::Remove { which: Copied::Base } => {
            if !clone::remove_base(context)? {
                bail!("there is no base\n  hint: millrace clone list");
            }
            context.output.line("removed the base: the next copy restores all files, and leaves another");
            Ok(0)
        }
    }
}

/// A moment, as people say it: a time, a position of the log, or how long ago.
pub(super) fn moment(text: &str) -> anyhow::Result<Target> {
    if let Ok(at) = text.parse::<Lsn>() {
        return Ok(Target::Lsn { at, inclusive: true });
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Target::Time { at: Micros(at.as_microsecond()), inclusive: true });
    }
    let wrong = || Usage(format!("`{text}` is no moment\n  hint: '10 minutes ago', 2026-11-22T10:00:00Z, 0/3000148"));
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    // years and months are of the calendar
    let now = SystemClock::new().wall().to_timestamp().ok_or_else(wrong)?.to_zoned(jiff::tz::TimeZone::UTC);
    let then = now.checked_add(span).map_err(|_| wrong())?;
    if then >= now {
        return Err(wrong().into());
    }
    Ok(Target::Time { at: Micros(then.timestamp().as_microsecond()), inclusive: true })
}

async fn make(context: &Context, options: &CloneMake) -> anyhow::Result<u8> {
    let target = options.at.as_deref().map_or(Ok(Target::Latest), moment)?;
    let repo = backup::open(context)?;
    let system_id = backup::system_id(context, &repo).await?;
    let port = options.port.map_or_else(clone::free_port, Ok)?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let made = clone::make(context, &repo, system_id, (target, port), &|step| bar.tell(step), &stop).await;
    bar.end();
    let made = made?;
    let plan = &made.plan;
    context.output.json(&serde_json::json!({
        "port": port,
        "plan": plan,
        "ended_at": made.ended_at,
        "shared": made.files == Files::Shared,
        "seconds": bar.seconds(),
    }))?;
    context.output.line(format!(
        "a copy of {} runs on port {port}, from {} and {} files of log, in {:.1} s",
        plan.target,
        plan.backups.join(" + "),
        plan.segments.len(),
        bar.seconds()
    ));
    context.output.line(match made.files {
        Files::Shared => "its blocks are shared with the base: it takes room only for what differs",
        Files::WrittenWithBase => {
            "its files were restored, and a base was left: the next copy from this backup shares blocks"
        }
        Files::Written => "its files were restored, and share no blocks",
    });
    if let Some(warning) = made.warning() {
        context.output.note(warning);
    }
    context.output.line(format!("look into it:  millrace psql {port}"));
    context.output.line(format!("throw it away: millrace clone remove {port}"));
    Ok(0)
}

fn list(context: &Context) -> anyhow::Result<u8> {
    let (all, base) = (clone::list(context)?, clone::base(context)?);
    context.output.json(&serde_json::json!({ "copies": all, "base": base }))?;
    if all.is_empty() {
        context.output.line("there are no copies");
    } else {
        context.output.line(shown(&all));
    }
    if let Some(base) = base {
        context.output.line(format!(
            "base: the files of {}, {}, there to make copies from it quick (millrace clone remove base)",
            base.label,
            bytes_text(base.bytes)
        ));
    }
    Ok(0)
}

fn shown(all: &[clone::Cloned]) -> String {
    let row = |cloned: &clone::Cloned| {
        let state = if cloned.running { "running" } else { "stopped" };
        vec![cloned.port.to_string(), cloned.target.clone(), cloned.backup.clone(), state.to_owned()]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table(&["port", "as of", "from backup", "state"], &rows).trim_end().to_owned()
}

/// Brings a table of the past back beside the live one, in a schema of its own.
pub(super) async fn restore_table(context: &Context, repo: &Repository, wanted: &RestoreTable) -> anyhow::Result<u8> {
    let (schema, name) = wanted.table.split_once('.').unwrap_or(("public", &wanted.table));
    let target = wanted.at.as_deref().map_or(Ok(Target::Latest), moment)?;
    let primary = primary(context).await?.to_database(&context.pack.database);
    let live = connect(&primary, SHORT).await.explained()?;
    let row = live.query_one("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL", &[&wanted.into]).await?;
    if row.get(0) {
        let into = &wanted.into;
        bail!(
            "schema {into} is there already\n  hint: another one with --into, or drop it: DROP SCHEMA {into} CASCADE"
        );
    }
    let system_id = backup::system_id(context, repo).await?;
    let port = clone::free_port()?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let made = clone::make(context, repo, system_id, (target, port), &|step| bar.tell(step), &stop).await;
    bar.end();
    let made = made?;
    let moved = tokio::select! {
        moved = bring(context, (&primary, port), (schema, name), &wanted.into) => moved,
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    let removed = clone::remove(context, port).await;
    moved?;
    removed?;
    let there = format!("{}.{}", Ident(&wanted.into), Ident(name));
    let rows: i64 = live.query_one(&format!("SELECT count(*) FROM {there}"), &[]).await?.get(0);
    context
        .output
        .json(&serde_json::json!({ "table": there, "rows": rows, "plan": made.plan, "ended_at": made.ended_at }))?;
    if let Some(warning) = made.warning() {
        context.output.note(warning);
    }
    context.output.line(format!(
        "{there} has the {rows} rows of {schema}.{name} as of {}, with its indexes; foreign keys and triggers were left out",
        made.plan.target
    ));
    context.output.line(format!("when you are done with it: DROP SCHEMA {} CASCADE", Ident(&wanted.into)));
    Ok(0)
}

pub(super) async fn primary(context: &Context) -> anyhow::Result<ConnectParams> {
    let api = super::client(&context.clone().of_cluster()?);
    let view: crate::platform::ClusterView = api.get("/cluster", SHORT).await?;
    let node = view.nodes.iter().find(|node| node.role == millrace_contract::status::NodeRole::Primary);
    context.superuser_at(node.context("the cluster has no primary now\n  hint: millrace cluster status")?)
}

/// Moves the table into a schema of its own in the copy, and that schema into the live database, whole or not at all.
async fn bring(
    context: &Context,
    (primary, port): (&ConnectParams, u16),
    (schema, name): (&str, &str),
    into: &str,
) -> anyhow::Result<()> {
    let past = recovered::superuser(context, port)?.to_database(&primary.database);
    let client = connect(&past, SHORT).await.explained()?;
    let tables = client.query(include_str!("../../sql/table_tree.sql"), &[&schema, &name]).await?;
    if tables.is_empty() {
        bail!("{schema}.{name} was not there then\n  hint: --at says which moment; the name is SCHEMA.TABLE");
    }
    client.batch_execute(&format!("CREATE SCHEMA {}", Ident(into))).await?;
    for row in &tables {
        for statement in row.get::<_, Vec<String>>("loosen") {
            client.batch_execute(&statement).await?;
        }
        let table: String = row.get("name");
        client.batch_execute(&format!("ALTER TABLE {table} SET SCHEMA {}", Ident(into))).await?;
    }
    // in the folder of the copy, which goes whatever happens
    let folder = context.layout.clones().join(port.to_string());
    let programs = Programs::new(context, &folder, &[&past, primary])?;
    // only a whole file goes into `psql`: that commits what it has when its input ends early
    let file = folder.join("table.sql");
    files::write_atomic(&file, b"", 0o600)?;
    let mut dump = programs.command("pg_dump", &past);
    dump.arg("--schema").arg(Ident(into).to_string()).arg("--no-publications").arg("--file").arg(&file);
    let mut load = programs.command("psql", primary);
    load.args(["--quiet", "--no-psqlrc", "--single-transaction", "--set", "ON_ERROR_STOP=1", "--output", "/dev/null"]);
    load.arg("--file").arg(&file);
    programs::run("pg_dump", dump).await?;
    programs::run("psql", load).await
}
