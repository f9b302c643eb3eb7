//! `millrace proxy`: the words for whoever operates the way of the applications.

use std::io::{BufRead as _, Write as _};

use anyhow::Context as _;
use millrace_contract::status::PlatformStatus;

use super::{LONG, SHORT, client, show};
use crate::{cli::ProxyCommand, context::Context, explain::Usage, platform::ReloadAnswer};

pub(super) async fn run(context: &Context, command: &ProxyCommand) -> anyhow::Result<u8> {
    let output = context.output;
    let (work, database, said) = match command {
        ProxyCommand::Show => {
            let status: PlatformStatus = client(context).get("/status", SHORT).await?;
            output.json(&status.proxy)?;
            output.line(show::proxy(&status));
            return Ok(0);
        }
        ProxyCommand::Reload => return reload(context).await,
        ProxyCommand::Pause { database } => {
            ("pause", database, "no transaction runs; new ones wait until `millrace proxy resume`")
        }
        ProxyCommand::Resume { database } => ("resume", database, "transactions go on"),
        ProxyCommand::Reconnect { database } => {
            ("reconnect", database, "connections are replaced as their transactions end")
        }
        ProxyCommand::Kill { database, yes } => {
            if !yes {
                confirm(context, database.as_deref())?;
            }
            ("kill", database, "no connection is left; who comes waits until `millrace proxy resume`")
        }
    };
    let () = client(context).post(&format!("/proxy/{work}"), database, LONG).await?;
    output.json(&serde_json::json!({ "done": work, "database": database }))?;
    output.line(said);
    Ok(0)
}

/// Asks whether all connections are to end.
fn confirm(context: &Context, database: Option<&str>) -> anyhow::Result<()> {
    let platform = &context.config.platform.name;
    let (what, name) =
        database.map_or((format!("all databases of {platform}"), platform.as_str()), |name| (name.to_owned(), name));
    context.output.note(format!(
        "this ends every application's connection to {what}, in the middle of its transaction.\ntype {name} to go on:"
    ));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != name {
        return Err(Usage("no connection was ended".to_owned()).into());
    }
    Ok(())
}

async fn reload(context: &Context) -> anyhow::Result<u8> {
    let output = context.output;
    let answer: ReloadAnswer = client(context).post("/proxy/reload", &(), SHORT).await?;
    output.json(&answer)?;
    for change in &answer.changed {
        output.line(change);
    }
    for waits in &answer.waits {
        output.line(format!("{} {waits}", output.yellow("from the next start:")));
    }
    if answer.changed.is_empty() && answer.waits.is_empty() {
        output.line("nothing to do: the files say what holds");
    }
    Ok(0)
}
