//! `millrace cluster`: the words for whoever decides which node is the primary.

use std::{
    io::{BufRead as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use millrace_base::{Clock as _, SystemClock};

use super::{Client, LONG, SHORT, client, show};

mod nodes;
mod restart;

use crate::{
    cli::ClusterCommand,
    context::Context,
    explain::Usage,
    lock,
    platform::{ClusterView, ClusterWork},
};

/// A switchover waits ten seconds for transactions, and for a checkpoint before.
const SWITCHOVER_MAX: Duration = Duration::from_secs(120);

pub(super) async fn run(context: &Context, command: &ClusterCommand) -> anyhow::Result<u8> {
    let work = match command {
        ClusterCommand::Status => return status(context, || {}).await,
        ClusterCommand::History => return history(context),
        ClusterCommand::Switchover { to } => ClusterWork::Switchover { to: to.clone() },
        ClusterCommand::Failover { to, yes } => {
            if !yes {
                confirm(context, to, "commits that it has not received are lost")?;
            }
            ClusterWork::Failover { to: to.clone() }
        }
        ClusterCommand::Pause => ClusterWork::Pause,
        ClusterCommand::Resume => ClusterWork::Resume,
        ClusterCommand::Reinit { node, yes } => {
            if !yes {
                confirm(context, node, "its data is deleted and copied anew")?;
            }
            ClusterWork::Reinit { node: node.clone() }
        }
        ClusterCommand::Reload => {
            let said = match reload(context, ClusterWork::Reload).await? {
                Some(said) => said,
                // it says what is missing
                None => client(context).post("/cluster", &ClusterWork::Reload, LONG).await?,
            };
            context.output.json(&serde_json::json!({ "done": said }))?;
            context.output.line(said);
            return Ok(0);
        }
        ClusterCommand::AddNode(wanted) => return nodes::add(context, wanted).await,
        ClusterCommand::RemoveNode { node, yes } => return nodes::remove(context, node, *yes).await,
        ClusterCommand::Restart { node, all } => return restart::run(context, node.as_deref(), *all).await,
    };
    let said: String = client(context).post("/cluster", &work, SWITCHOVER_MAX.max(LONG)).await?;
    context.output.json(&serde_json::json!({ "done": said }))?;
    context.output.line(said);
    Ok(0)
}

/// Tells who runs on this host, the platform or an agent or both, that millrace.toml has changed: `work` to whoever runs
/// the servers, the nodes alone to a platform beside it. `None`: nobody runs.
async fn reload(context: &Context, work: ClusterWork) -> anyhow::Result<Option<String>> {
    let mut places = vec![(context.layout.clone(), work)];
    let beside = context.clone().of_platform().layout;
    if beside.lock() != context.layout.lock() {
        places.push((beside, ClusterWork::TurnOver));
    }
    let mut said: Option<String> = None;
    for (layout, work) in places {
        if lock::holder(&layout.lock())?.is_none() {
            continue;
        }
        let answer: anyhow::Result<String> = Client::new(layout.run()).post("/cluster", &work, LONG).await;
        match (answer, &mut said) {
            (Ok(answer), None) => said = Some(answer),
            (Ok(_), Some(_)) => {}
            (Err(error), None) => return Err(error),
            // the file is right for the first: it stays
            (Err(error), Some(said)) => {
                said.push_str(&format!(
                    "\nbut the platform beside the agent has not heard it: {error:#}\n  hint: millrace cluster reload"
                ));
            }
        }
    }
    Ok(said)
}

/// `begin` is called when there is something to show.
pub(super) async fn status(context: &Context, begin: impl FnOnce()) -> anyhow::Result<u8> {
    let view: ClusterView = client(context).get("/cluster", SHORT).await?;
    begin();
    context.output.json(&view)?;
    let (name, now) = (&context.config.platform.name, SystemClock::new().wall());
    context.output.line(show::cluster(name, &view, now, context.output).trim_end());
    Ok(0)
}

fn history(context: &Context) -> anyhow::Result<u8> {
    let entries = millrace_cluster::history::read(&context.layout.cluster()).context("cannot read the history")?;
    context.output.json(&entries)?;
    if entries.is_empty() {
        context.output.line("nothing has happened to the primary yet");
    }
    for entry in &entries {
        context.output.line(format!("{}  term {}  {}", entry.at, entry.term, entry.event));
    }
    Ok(0)
}

/// Asks whether it is to be done to `node`.
fn confirm(context: &Context, node: &str, price: &str) -> anyhow::Result<()> {
    context.output.note(format!("{node}: {price}.\ntype {node} to go on:"));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != node {
        return Err(Usage("nothing was done".to_owned()).into());
    }
    Ok(())
}
