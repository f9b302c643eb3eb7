//! `millrace backup dump | dumps | fetch | load | restore-database`: single databases, in and out.

use std::path::Path;

use anyhow::{Context as _, bail};
use millrace_backup::{
    dump::{self, DatabaseTraits, Dump, DumpFormat, GLOBALS},
    plan::Target,
    repo::Repository,
};
use millrace_base::ident::Ident;
use millrace_pg::{ConnectParams, Connection, connect};
use tokio_util::sync::CancellationToken;

use super::{
    SHORT,
    backup::stop_on_interrupt,
    clone::{moment, primary},
    progress::Bar,
};
use crate::{
    backup,
    cli::{DumpArgs, LoadArgs, RestoreDatabase},
    clone,
    context::Context,
    dumps::{self, Wanted},
    explain::{Explained as _, Usage},
    output::{bytes_text, table},
    programs::{self, Programs},
    recovered,
};

pub(super) async fn make(context: &Context, repo: &Repository, wanted: &DumpArgs) -> anyhow::Result<u8> {
    let format = match (wanted.format.as_deref(), wanted.jobs) {
        (None, 1) | (Some("custom"), 1) => DumpFormat::Custom,
        (Some("plain"), 1) => DumpFormat::Plain,
        (Some("custom" | "plain"), _) => {
            return Err(Usage("--jobs needs --format directory, which is taken without --format".to_owned()).into());
        }
        (None | Some("directory"), _) => DumpFormat::Directory,
        (Some(other), _) => {
            let what = format!("`{other}` is no format\n  hint: custom, plain or directory");
            return Err(Usage(what).into());
        }
    };
    let database = wanted.database.clone().unwrap_or_else(|| context.pack.database.clone());
    let api = super::client(&context.clone().of_cluster()?);
    let nodes = api.get::<crate::platform::ClusterView>("/cluster", SHORT).await?.nodes;
    let (node, _) = backup::source(context, &nodes, None)
        .context("no server that could be read runs on this host\n  hint: millrace cluster status")?;
    let wanted =
        Wanted { database, format, schemas: wanted.schema.clone(), tables: wanted.table.clone(), jobs: wanted.jobs };
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let made = dumps::make(context, repo, &node, wanted, &stop).await?;
    context.output.json(&made)?;
    context.output.line(format!(
        "{} ({}, of {}): {}, {} stored in {:.1} s",
        made.label,
        made.database,
        node.name,
        bytes_text(made.data_bytes),
        bytes_text(made.stored_bytes),
        bar.seconds()
    ));
    Ok(0)
}

pub(super) async fn list(context: &Context, repo: &Repository) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let all = dump::dumps(repo, system_id).await.explained()?;
    context.output.json(&all.dumps)?;
    if all.dumps.is_empty() {
        context.output.line(format!("no logical backups in {} yet: millrace backup dump", repo.name()));
    } else {
        let rows: Vec<Vec<String>> = all.dumps.iter().map(row).collect();
        context.output.line(table(&["dump", "database", "of", "written as", "at", "data", "stored"], &rows).trim_end());
    }
    for (object, reason) in &all.damaged {
        context.output.line(format!("damaged: {object}: {reason}"));
    }
    for (label, _) in &all.unfinished {
        context.output.line(format!("unfinished, or under way: {label}"));
    }
    Ok(u8::from(!all.damaged.is_empty()))
}

fn row(dump: &Dump) -> Vec<String> {
    let parts: Vec<&str> = dump.schemas.iter().chain(&dump.tables).map(String::as_str).collect();
    vec![
        dump.label.clone(),
        dump.database.clone(),
        if parts.is_empty() { "all".to_owned() } else { parts.join(", ") },
        written_as(dump.written_as).to_owned(),
        dump.at.to_string(),
        bytes_text(dump.data_bytes),
        bytes_text(dump.stored_bytes),
    ]
}

fn written_as(format: DumpFormat) -> &'static str {
    match format {
        DumpFormat::Custom => "custom",
        DumpFormat::Plain => "plain",
        DumpFormat::Directory => "directory",
    }
}

pub(super) async fn fetch(context: &Context, repo: &Repository, label: &str, to: &Path) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let to = std::path::absolute(to)?;
    let dump = dump::fetch(repo, system_id, label, &to, &stop).await.explained()?;
    context.output.json(&dump)?;
    let (folder, file) = (to.display(), dump.file());
    context.output.line(format!("wrote {folder}/{file} and {folder}/{GLOBALS}, {}", bytes_text(dump.data_bytes)));
    context.output.line(match dump.written_as {
        DumpFormat::Plain => format!("next: psql --dbname DATABASE --file {folder}/{file}"),
        DumpFormat::Custom | DumpFormat::Directory => {
            format!("next: pg_restore --dbname DATABASE --jobs 2 {folder}/{file}")
        }
    });
    Ok(0)
}

/// A dump into a new database of the running cluster.
pub(super) async fn load(context: &Context, repo: &Repository, wanted: &LoadArgs) -> anyhow::Result<u8> {
    let system_id = backup::system_id(context, repo).await?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let scratch = programs::scratch(context)?;
    let live = primary(context).await?;
    let client = connect(&live, SHORT).await.explained()?;
    new_name(&client, &wanted.into).await?;
    let files = scratch.path().join("files");
    let dump = dump::fetch(repo, system_id, &wanted.dump, &files, &stop).await.explained()?;
    let programs = Programs::new(context, scratch.path(), &[&live])?;
    let from = (files.join(dump.file()), dump.written_as);
    fill(&programs, &client, &live, (&wanted.into, &dump.traits), (&from.0, from.1), wanted.jobs, &stop).await?;
    context.output.json(&serde_json::json!({ "database": wanted.into, "dump": dump }))?;
    context.output.line(format!(
        "{} has what {} had at {}, in {:.1} s",
        Ident(&wanted.into),
        dump.database,
        dump.at,
        bar.seconds()
    ));
    Ok(0)
}

/// One database of the past beside the live one, through a copy of everything.
pub(super) async fn restore_database(
    context: &Context,
    repo: &Repository,
    wanted: &RestoreDatabase,
) -> anyhow::Result<u8> {
    let target = wanted.at.as_deref().map_or(Ok(Target::Latest), moment)?;
    let into = wanted.into.clone().unwrap_or_else(|| format!("{}_restored", wanted.database));
    let live = primary(context).await?;
    let client = connect(&live, SHORT).await.explained()?;
    new_name(&client, &into).await?;
    let system_id = backup::system_id(context, repo).await?;
    let port = clone::free_port()?;
    let mut tasks = millrace_base::Tasks::new(CancellationToken::new());
    let stop = stop_on_interrupt(&mut tasks);
    let bar = Bar::new(context);
    let made = clone::make(context, repo, system_id, (target, port), &|step| bar.tell(step), &stop).await;
    bar.end();
    let made = made?;
    let moved = bring(context, (&client, &live), (port, &wanted.database), (&into, wanted.jobs), &stop).await;
    let removed = clone::remove(context, port).await;
    moved?;
    removed?;
    context.output.json(&serde_json::json!({ "database": into, "plan": made.plan, "ended_at": made.ended_at }))?;
    if let Some(warning) = made.warning() {
        context.output.note(warning);
    }
    context.output.line(format!(
        "{} has what {} had as of {}, in {:.1} s; publications and subscriptions were left out",
        Ident(&into),
        wanted.database,
        made.plan.target,
        bar.seconds()
    ));
    Ok(0)
}

async fn bring(
    context: &Context,
    (client, live): (&Connection, &ConnectParams),
    (port, database): (u16, &str),
    (into, jobs): (&str, usize),
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let past = recovered::superuser(context, port)?.to_database(database);
    let of_past = connect(&past, SHORT).await.explained()?;
    let server = of_past.query_one(include_str!("../../sql/database_traits.sql"), &[]).await?;
    drop(of_past);
    // on the disk of the copy, and gone with it
    let folder = context.layout.clones().join(port.to_string());
    let programs = Programs::new(context, &folder, &[&past, live])?;
    let file = folder.join("database");
    let mut dump = programs.command("pg_dump", &past);
    dump.args(["--format=directory", "--compress=0", "--no-publications", "--no-subscriptions"]);
    dump.arg("--jobs").arg(jobs.max(1).to_string()).arg("--file").arg(&file);
    tokio::select! {
        dumped = programs::run("pg_dump", dump) => dumped?,
        () = stop.cancelled() => bail!("interrupted"),
    }
    fill(&programs, client, live, (into, &dumps::traits(&server)), (&file, DumpFormat::Directory), jobs, stop).await
}

async fn new_name(client: &Connection, name: &str) -> anyhow::Result<()> {
    let there = client.query_one("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", &[&name]).await?;
    if there.get(0) {
        bail!("there is a database {name} already\n  hint: another name with --into, or drop that one");
    }
    Ok(())
}

/// Makes the database and fills it, or leaves none.
async fn fill(
    programs: &Programs,
    client: &Connection,
    live: &ConnectParams,
    (name, traits): (&str, &DatabaseTraits),
    (file, format): (&Path, DumpFormat),
    jobs: usize,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let known = client.query_one("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", &[&traits.owner]).await?;
    let owner = if known.get(0) { traits.owner.as_str() } else { live.user.as_str() };
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let icu = traits
        .icu_locale
        .as_ref()
        .map_or_else(String::new, |locale| format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", literal(locale)));
    let make = format!(
        "CREATE DATABASE {} TEMPLATE template0 OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}{icu}",
        Ident(name),
        Ident(owner),
        literal(&traits.encoding),
        literal(&traits.collate),
        literal(&traits.ctype)
    );
    client.batch_execute(&make).await.with_context(|| format!("cannot make the database {name}"))?;
    let params = live.to_database(name);
    let (program, command) = match format {
        DumpFormat::Plain => {
            let mut load = programs.command("psql", &params);
            load.args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--output", "/dev/null"]);
            load.arg("--file").arg(file);
            ("psql", load)
        }
        DumpFormat::Custom | DumpFormat::Directory => {
            let mut load = programs.command("pg_restore", &params);
            load.args(["--exit-on-error", "--no-publications", "--no-subscriptions", "--dbname", name]);
            load.arg("--jobs").arg(jobs.max(1).to_string()).arg(file);
            ("pg_restore", load)
        }
    };
    let filled = tokio::select! {
        filled = programs::run(program, command) => filled,
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    if filled.is_err() {
        // sessions of a program that was killed may be there for a moment more
        let drop = format!("DROP DATABASE {} WITH (FORCE)", Ident(name));
        client.batch_execute(&drop).await.with_context(|| format!("the database {name} is half filled"))?;
    }
    filled
}
