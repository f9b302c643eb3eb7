//! The process dies, or a step fails, at each place of a batch: the next start goes on as if nothing had been.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod loans;

use std::{path::PathBuf, process::Command};

use loans::{history::*, *};
use millrace_contract::{RunKind, Sink, SinkError, Step};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

const FOLDER: &str = "MILLRACE_CRASH_FOLDER";
const FAILPOINT: &str = "MILLRACE_CRASH_FAILPOINT";

/// The same history in every process.
fn history() -> Vec<Vec<Event>> {
    let strategy = proptest::collection::vec(proptest::collection::vec(event(), 6..14), 5);
    strategy.new_tree(&mut TestRunner::deterministic()).unwrap().current()
}

/// Not a test by itself: the process that [`nothing_is_lost_or_doubled`] lets die. Applies what the
/// warehouse does not have yet.
#[tokio::test]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    if let Some(failpoint) = std::env::var_os(FAILPOINT) {
        millrace_base::failpoint::arm(failpoint.to_str().unwrap()).unwrap();
    }
    let engine = engine(&folder);
    let mut sink = indexing_sink(&engine);
    let mut source = Source::new();
    let mut watermark = sink.resume().await.unwrap().watermark;
    while !watermark.is_valid() {
        match apply(&mut sink, RunKind::InitialCopy, source.copy(), 10).await {
            Ok(_) | Err(SinkError::Retry(_)) => watermark = sink.resume().await.unwrap().watermark,
            Err(other) => panic!("{other}"),
        }
    }
    for events in history() {
        let steps = source.happen(&events);
        while watermark < source.end().watermark {
            match apply(&mut sink, RunKind::Changes, steps.clone(), source.lsn).await {
                Ok(_) | Err(SinkError::Retry(_)) => watermark = sink.resume().await.unwrap().watermark,
                Err(other) => panic!("{other}"),
            }
        }
    }
    sink.close().await;
}

fn run(folder: &std::path::Path, failpoint: Option<&str>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child"]).env(FOLDER, folder);
    if let Some(failpoint) = failpoint {
        command.env(FAILPOINT, failpoint);
    }
    command.output().unwrap().status.success()
}

#[test]
fn nothing_is_lost_or_doubled() {
    let mut source = Source::new();
    for events in history() {
        source.happen(&events);
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(run(folder.path(), None), "without trouble");
    let calm = star(&engine(folder.path()));
    let places =
        ["begin", "after_raw", "after_staging", "after_dimensions", "after_facts", "before_commit", "after_commit"];
    let times = [(1, "abort"), (3, "abort"), (2, "error")];
    let all = places.into_iter().flat_map(|place| times.map(|(hits, action)| (place, hits, action)));
    // between the rows of a first copy and the models
    let first = [("after_copy", 1, "abort"), ("after_copy", 1, "error")];
    for (place, hits, action) in all.chain(first) {
        let folder = tempfile::tempdir().unwrap();
        let failpoint = format!("batch.{place}={hits}:{action}");
        let survived = run(folder.path(), Some(&failpoint));
        assert_eq!(survived, action == "error", "{failpoint}");
        assert!(run(folder.path(), None), "{failpoint}: the next start");
        let engine = engine(folder.path());
        assert_eq!(staged(&engine), source.expected(), "{failpoint}");
        assert_eq!(star(&engine), calm, "{failpoint}");
        assert_verified(&engine);
    }
}

/// What the next try does not bring is not there, whatever the first one has left of it.
#[tokio::test]
async fn what_a_first_copy_has_left_counts_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path());
    let mut sink = indexing_sink(&engine);
    let mut steps = Source::new().copy();
    millrace_base::failpoint::arm("batch.after_copy=1:error").unwrap();
    let failed = apply(&mut sink, RunKind::InitialCopy, steps.clone(), 10).await;
    assert!(matches!(failed, Err(SinkError::Retry(_))), "{failed:?}");
    assert!(sink.resume().await.unwrap().tables.is_empty());

    // a step with its columns and one with its rows
    let gone = match &steps[steps.len() - 2] {
        Step::Schema(schema) => schema.table.clone(),
        other => panic!("{other:?}"),
    };
    steps.truncate(steps.len() - 2);
    let mut tries = 0;
    while let Err(error) = apply(&mut sink, RunKind::InitialCopy, steps.clone(), 10).await {
        // models of what is gone are held, one after the other
        tries += 1;
        assert!(matches!(error, SinkError::Retry(_)) && tries < 10, "{error:?}");
    }
    let resume = sink.resume().await.unwrap();
    assert_eq!(resume.tables.len(), steps.len() / 2);
    assert!(!resume.tables.contains(&gone));
    let name = &gone.name;
    let sql = format!(
        "select count(*) from duckdb_tables() where schema_name in ('raw', 'staging') and table_name = '{name}'"
    );
    assert_eq!(query::<i64>(&engine, &sql), [0], "{gone}");
    sink.close().await;
}
