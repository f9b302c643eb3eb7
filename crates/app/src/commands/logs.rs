//! `millrace logs`: the newest lines of each component, and on.

use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{cli, output::Output};

/// How much of a file's end is looked at for its last lines, in bytes.
const TAIL_BYTES_MAX: u64 = 1 << 20;

/// `files` are the components' names and log files.
pub(crate) async fn run(options: &cli::Logs, files: &[(String, PathBuf)], output: Output) -> anyhow::Result<()> {
    let chosen: Vec<_> =
        files.iter().filter(|(name, _)| options.component.as_ref().is_none_or(|wanted| wanted == name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        bail!(
            "no component is called `{}`\n  hint: one of {}",
            options.component.as_deref().unwrap_or_default(),
            names.join(", ")
        );
    }
    let mut ends = Vec::new();
    for (name, path) in &chosen {
        let (lines, end) = tail(path, options.lines)?;
        show(name, &lines, output);
        ends.push(end);
    }
    if !options.follow {
        return Ok(());
    }
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            interrupted = tokio::signal::ctrl_c() => return interrupted.context("cannot wait for Ctrl-C"),
        }
        for ((name, path), end) in chosen.iter().zip(&mut ends) {
            let (lines, now) = since(path, *end)?;
            show(name, &lines, output);
            *end = now;
        }
    }
}

fn show(name: &str, lines: &[String], output: Output) {
    for line in lines {
        if output.json {
            output.raw(format!("{}\n", serde_json::json!({ "component": name, "line": line })));
        } else {
            output.raw(format!("{} {line}\n", output.faint(&format!("{name:>9} │"))));
        }
    }
}

/// The last `count` lines, and where the file ends.
fn tail(path: &Path, count: usize) -> anyhow::Result<(Vec<String>, u64)> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let (lines, end) = since(path, length.saturating_sub(TAIL_BYTES_MAX))?;
    let skip = lines.len().saturating_sub(count);
    Ok((lines.into_iter().skip(skip).collect(), end))
}

/// Whole lines after `start`, and where they end. A file that became shorter is read from its beginning.
fn since(path: &Path, start: u64) -> anyhow::Result<(Vec<String>, u64)> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let start = if file.metadata()?.len() < start { 0 } else { start };
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    bytes.truncate(whole);
    let lines = String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
    Ok((lines, start + u64::try_from(whole)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_whole_lines_and_then_the_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        assert_eq!(tail(&path, 2).unwrap(), (vec![], 0));
        std::fs::write(&path, "one\ntwo\nthree\nhal").unwrap();
        let (lines, end) = tail(&path, 2).unwrap();
        assert_eq!((lines, end), (vec!["two".to_owned(), "three".to_owned()], 14));
        std::fs::write(&path, "one\ntwo\nthree\nhalf\n").unwrap();
        assert_eq!(since(&path, end).unwrap().0, ["half"]);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(since(&path, end).unwrap().0, ["new"]);
    }
}
