//! The law: whatever happens to the source, what batches left incrementally is what a rebuild makes,
//! and staging is what a plain map holds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod loans;

use std::sync::Arc;

use loans::{history::*, *};
use millrace_contract::{RunKind, Sink};
use millrace_warehouse::{DuckSink, Engine};
use proptest::prelude::*;

fn has_indexes(engine: &Engine) -> bool {
    engine.connect().unwrap().query_row("select count(*) > 0 from duckdb_indexes()", [], |row| row.get(0)).unwrap()
}

async fn lives_by_the_law(batches: Vec<(Vec<Event>, Trouble)>, open: fn(&Arc<Engine>) -> DuckSink, indexed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = engine(folder.path());
    let mut sink = open(&engine);
    let mut source = Source::new();
    apply(&mut sink, RunKind::InitialCopy, source.copy(), 10).await.unwrap();
    for (events, trouble) in batches {
        let steps = source.happen(&events);
        if trouble == Trouble::Rollback || trouble == Trouble::Misfit {
            sink.begin(RunKind::Changes, 42).await.unwrap();
            for step in steps.clone() {
                sink.append(step).await.unwrap();
            }
            if trouble == Trouble::Misfit {
                let refused = sink.append(source.misfit()).await;
                assert!(matches!(refused, Err(millrace_contract::SinkError::Table { .. })), "{refused:?}");
            }
            sink.rollback().await.unwrap();
        }
        sink.begin(RunKind::Changes, 42).await.unwrap();
        for step in steps {
            sink.append(step).await.unwrap();
        }
        sink.commit(source.end()).await.unwrap();
        assert_eq!(staged(&engine), source.expected());
        if trouble == Trouble::Restart {
            sink.close().await;
            drop(engine);
            engine = loans::engine(folder.path());
            sink = open(&engine);
            assert_eq!(sink.resume().await.unwrap().watermark, source.end().watermark);
        }
    }
    assert_verified(&engine);
    assert_eq!(has_indexes(&engine), indexed);
    let incremental = star(&engine);
    sink.handle().rebuild().await.unwrap();
    assert_eq!(star(&engine), incremental);
    sink.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_is_full_rebuild(batches in batches()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(lives_by_the_law(batches, sink, false));
    }

    /// Large tables have indexes on their keys; here all have.
    #[test]
    fn incremental_is_full_rebuild_with_indexes(batches in batches()) {
        let law = lives_by_the_law(batches, indexing_sink, true);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(law);
    }
}
