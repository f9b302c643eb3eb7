//! The law: whatever happens to the source, what batches left incrementally is what a rebuild makes,
//! and staging is what a plain map holds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod loans;

use loans::{history::*, *};
use millrace_contract::{RunKind, Sink};
use proptest::prelude::*;

async fn lives_by_the_law(batches: Vec<(Vec<Event>, Trouble)>) {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = engine(folder.path());
    let mut sink = sink(&engine);
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
            sink = loans::sink(&engine);
            assert_eq!(sink.resume().await.unwrap().watermark, source.end().watermark);
        }
    }
    assert_verified(&engine);
    let incremental = star(&engine);
    sink.handle().rebuild().await.unwrap();
    assert_eq!(star(&engine), incremental);
    sink.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_is_full_rebuild(batches in batches()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(lives_by_the_law(batches));
    }
}
