//! `up`, `down`, `nuke`: the life of the platform's process and data.

use std::{
    io::{BufRead, Write},
    os::unix::process::CommandExt,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_base::files;
use millrace_config::Environment;
use millrace_pg::StopMode;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    cli::Up,
    context::Context,
    control::Client,
    explain::{Explained, Usage},
    lock,
    platform::{self, Start},
};

/// First start with large base backups included.
const READY_MAX: Duration = Duration::from_secs(1200);
const STOP_MAX: Duration = Duration::from_secs(180);
const SERVER_STOP_MAX: Duration = Duration::from_secs(60);

pub(crate) async fn up(context: Context, options: &Up, environment: &Environment) -> anyhow::Result<u8> {
    if options.detach {
        return detached(&context, options).await;
    }
    let start = Start {
        sample: options.sample,
        simulate: options.simulate,
        recopy: options.recopy,
        log_filter: environment.log.clone(),
        foreground: !options.background,
    };
    context.output.line(format!("starting {} in {}", context.config.platform.name, context.layout.data().display()));
    platform::run(context, start).await?;
    Ok(0)
}

/// One node of a cluster on many hosts, until it is stopped.
pub(crate) async fn agent(context: Context, node: &str, environment: &Environment) -> anyhow::Result<u8> {
    let start = Start { log_filter: environment.log.clone(), foreground: true, ..Start::default() };
    context.output.line(format!("starting the agent of node {node} in {}", context.layout.data().display()));
    platform::agent::run(context, node, &start).await?;
    Ok(0)
}

/// Starts this program again in a session of its own, shows what it says until it is ready, and leaves it.
async fn detached(context: &Context, options: &Up) -> anyhow::Result<u8> {
    let output = context.output;
    let mut command = std::process::Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("up").arg("--background").arg("--dir").arg(&context.config.folder);
    if options.sample {
        command.arg("--sample");
    }
    if options.recopy {
        command.arg("--recopy");
    }
    if let Some(rate) = options.simulate {
        command.arg("--simulate").arg(rate.to_string());
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(&context.config.folder)
        .process_group(0);
    let mut child = tokio::process::Command::from(command).spawn().context("cannot start the platform")?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("the platform's output cannot be read");
    };
    let mut said = BufReader::new(stdout).lines();
    let mut complained = BufReader::new(stderr).lines();
    let client = Client::new(context.layout.run());
    let follow = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let mut ready = false;
        loop {
            tokio::select! {
                // with --json people's lines (a first password among them) go to the error stream
                Ok(Some(line)) = said.next_line() => if output.json { output.note(line) } else { output.line(line) },
                Ok(Some(line)) = complained.next_line() => output.note(line),
                status = child.wait() => {
                    while let Ok(Some(line)) = said.next_line().await {
                        output.line(line);
                    }
                    while let Ok(Some(line)) = complained.next_line().await {
                        output.note(line);
                    }
                    return anyhow::Ok(u8::from(!status?.success()));
                }
                _ = tick.tick() => {
                    // one more round after it is ready, for the lines it said before
                    if ready {
                        return Ok(0);
                    }
                    ready = client.get::<bool>("/ready", Duration::from_secs(5)).await.unwrap_or(false);
                }
            }
        }
    };
    let code = tokio::time::timeout(READY_MAX, follow)
        .await
        .context("the platform was not ready in time\n  hint: see `millrace status` and `millrace logs`")??;
    output.json(&serde_json::json!({ "up": code == 0, "console": context.console_url() }))?;
    Ok(code)
}

/// Where the nodes are on many hosts, both the platform and the agent of this one.
pub(crate) async fn down(context: &Context) -> anyhow::Result<u8> {
    let output = context.output;
    let beside = context.clone().of_platform();
    let beside_stopped = context.config.etcd.is_some() && stopped(&beside).await?;
    if beside_stopped {
        output.line("stopped the platform");
    }
    if stopped(context).await? {
        output.line("stopped");
    } else {
        let stopped = stop_left_over(context, StopMode::Fast).await?;
        output.line(match stopped {
            0 if beside_stopped => "no agent runs here".to_owned(),
            0 => "nothing runs".to_owned(),
            stopped => format!("the platform was not running; stopped {stopped} servers that it had left"),
        });
    }
    output.json(&serde_json::json!({ "down": true }))?;
    Ok(0)
}

/// Stops what runs, and says whether anything did.
async fn stopped(context: &Context) -> anyhow::Result<bool> {
    let Some(asked) = ask_to_stop(context).await? else { return Ok(false) };
    asked?;
    if !lock::wait_free(&context.layout.lock(), STOP_MAX).await? {
        bail!("the platform did not stop within {} s\n  hint: see `millrace logs`", STOP_MAX.as_secs());
    }
    Ok(true)
}

/// Asks a running platform to stop; `None` if none runs. One that was killed a moment ago still holds its
/// lock until the last of its threads has gone: it does not answer, and the lock is soon free.
async fn ask_to_stop(context: &Context) -> anyhow::Result<Option<anyhow::Result<()>>> {
    let lock = context.layout.lock();
    if lock::holder(&lock)?.is_none() {
        return Ok(None);
    }
    let asked = Client::new(context.layout.run()).post("/down", &(), Duration::from_secs(10)).await;
    if asked.is_err() && lock::wait_free(&lock, lock::DYING_MAX).await? {
        return Ok(None);
    }
    Ok(Some(asked))
}

/// Servers that a killed platform left: the primary first, so that replicas get all it has.
pub(super) async fn stop_left_over(context: &Context, mode: StopMode) -> anyhow::Result<usize> {
    let spec = context.cluster_spec()?;
    let mut stopped = 0;
    for node in &spec.nodes {
        if let Some(mut server) = spec.server(node).adopt().explained()? {
            server.stop(mode, SERVER_STOP_MAX).await.explained()?;
            stopped += 1;
        }
    }
    Ok(stopped)
}

/// Takes the lock of a platform that does not run.
///
/// # Errors
/// If it runs.
pub(super) async fn alone(context: &Context) -> anyhow::Result<lock::PlatformLock> {
    let layout = &context.layout;
    files::create_dir_all(&layout.run(), 0o700).with_context(|| format!("cannot make {}", layout.run().display()))?;
    let mut taken = lock::take(&layout.lock())?;
    if taken.is_err() && Client::new(layout.run()).get::<bool>("/ready", Duration::from_secs(5)).await.is_err() {
        // one that was killed a moment ago
        lock::wait_free(&layout.lock(), lock::DYING_MAX).await?;
        taken = lock::take(&layout.lock())?;
    }
    match taken {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("the platform runs\n  hint: stop it first: millrace down"),
    }
}

/// Asks for the platform's name before what cannot be undone.
pub(super) fn confirmed(context: &Context, what: &str) -> anyhow::Result<bool> {
    context.output.note(format!("{what} type the platform's name to go on:"));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim() == context.config.platform.name)
}

pub(crate) async fn nuke(context: &Context, yes: bool) -> anyhow::Result<u8> {
    let output = context.output;
    let layout = &context.layout;
    // held to the end: nothing starts while its folders go. The lock's own folder is the last of them
    let _lock = alone(context).await?;
    let beside = context.config.etcd.is_some().then(|| layout.beside_agents());
    let _lock_beside = match &beside {
        Some(beside) => {
            let run = beside.run();
            files::create_dir_all(&run, 0o700).with_context(|| format!("cannot make {}", run.display()))?;
            let Ok(taken) = lock::take(&beside.lock())? else {
                bail!("the platform runs\n  hint: stop it first: millrace down");
            };
            Some(taken)
        }
        None => None,
    };
    if !yes {
        let name = &context.config.platform.name;
        let what = format!(
            "this deletes all data of {name} in {}: databases, warehouse, logs.\nconfiguration, secrets and pack stay.",
            layout.data().display()
        );
        if !confirmed(context, &what)? {
            return Err(Usage("nothing was deleted".to_owned()).into());
        }
    }
    stop_left_over(context, StopMode::Immediate).await?;
    crate::clone::end_all(context).await?;
    let mut deleted = Vec::new();
    let all = layout.all().into_iter().chain(beside.map(|beside| beside.data().to_owned()));
    for folder in all {
        match std::fs::remove_dir_all(&folder) {
            // made a moment ago, for the lock
            Ok(()) if folder == layout.run() && deleted.is_empty() => {}
            Ok(()) => deleted.push(folder.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot delete {}", folder.display())),
        }
    }
    output.line(if deleted.is_empty() {
        "there was nothing to delete".to_owned()
    } else {
        format!("deleted {}", deleted.join(", "))
    });
    output.json(&serde_json::json!({ "deleted": deleted }))?;
    Ok(0)
}
