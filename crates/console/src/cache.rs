//! Answers of reports, kept until the watermark moves.
//!
//! There is no time to live: an answer is right for the log position that it carries, so it serves
//! every reader until the warehouse holds a later one. Equal questions at the same time are asked
//! once. Errors are not kept. Memory is bounded by entries and by cells of an entry.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use millrace_contract::{Query, query::RowSet};
use tokio::sync;

use crate::{
    format,
    tile::{Stamp, TileError},
};

const ENTRIES_MAX: usize = 256;
/// A larger answer is given but not kept.
const CELLS_MAX: usize = 10_000;

type Slot = Arc<sync::Mutex<Option<Arc<RowSet>>>>;

/// The kept answers by question.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Counts uses: the entry with the lowest count was used longest ago.
    uses: u64,
    by_question: HashMap<String, (u64, Slot)>,
}

/// Statement and parameters, told apart from every other.
fn question(query: &Query) -> String {
    query.params.iter().fold(query.sql.clone(), |mut key, value| {
        let text = format::plain(value);
        key.push_str(&format!("\0{:?} {}:{text}", std::mem::discriminant(value), text.len()));
        key
    })
}

impl Cache {
    fn slot(&self, query: &Query) -> Slot {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.uses += 1;
        let (uses, entries) = (inner.uses, &mut inner.by_question);
        let key = question(query);
        if entries.len() >= ENTRIES_MAX
            && !entries.contains_key(&key)
            && let Some(stalest) = entries.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone())
        {
            entries.remove(&stalest);
        }
        let entry = entries.entry(key).or_default();
        entry.0 = uses;
        entry.1.clone()
    }

    /// The answer of `query`: the kept one if `newest` is not later than it, else what `ask` gives.
    ///
    /// The slot's lock is held while asking, on purpose: who asks the same meanwhile waits for the
    /// answer. If the one who asks goes away, the lock is free and the next one asks.
    ///
    /// # Errors
    /// Those of `ask`.
    pub(crate) async fn get<F>(
        &self,
        query: &Query,
        newest: Option<Stamp>,
        ask: impl FnOnce() -> F,
    ) -> Result<Arc<RowSet>, TileError>
    where
        F: Future<Output = Result<RowSet, TileError>>,
    {
        let slot = self.slot(query);
        let mut kept = slot.lock().await;
        if let (Some(set), Some(newest)) = (&*kept, newest)
            && set.freshness.watermark >= newest.lsn
            && set.freshness.run_id >= newest.run_id
        {
            let mut set = RowSet::clone(set);
            // the same data, heard of later
            set.freshness.confirmed_at = set.freshness.confirmed_at.max(millrace_base::Micros(newest.confirmed_at));
            return Ok(Arc::new(set));
        }
        let set = Arc::new(ask().await?);
        let small = set.rows.len().saturating_mul(set.columns.len()) <= CELLS_MAX;
        *kept = small.then(|| set.clone());
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use millrace_base::{Lsn, Micros};
    use millrace_contract::{Value, query::Freshness};

    use super::*;

    fn stamp(lsn: u64) -> Stamp {
        Freshness { watermark: Lsn(lsn), commit_time: Micros(0), confirmed_at: Micros(0), run_id: 1 }.into()
    }

    async fn get(cache: &Cache, asked: &AtomicUsize, sql: &str, param: Value, lsn: u64) {
        let query = Query::new(sql).with(vec![param]);
        let ask = || async {
            asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            let freshness = Freshness { watermark: Lsn(lsn), run_id: 1, ..Freshness::default() };
            Ok(RowSet { columns: vec![], freshness, rows: vec![], truncated: false })
        };
        cache.get(&query, Some(stamp(lsn)), ask).await.unwrap();
    }

    #[tokio::test]
    async fn equal_questions_are_asked_once_for_each_watermark() {
        let (cache, asked) = (Cache::default(), AtomicUsize::new(0));
        let text = |t: &str| Value::Text(t.into());
        futures::future::join_all((0..10).map(|_| get(&cache, &asked, "a", text("x"), 5))).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        get(&cache, &asked, "a", text("x"), 4).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1, "an earlier look does not outdate it");
        get(&cache, &asked, "a", text("x"), 6).await;
        get(&cache, &asked, "a", text("y"), 6).await;
        get(&cache, &asked, "a", Value::Null, 6).await;
        get(&cache, &asked, "a", text(""), 6).await;
        assert_eq!(asked.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let (cache, asked) = (Cache::default(), AtomicUsize::new(0));
        for i in 0..1000 {
            get(&cache, &asked, "a", Value::Int(i), 1).await;
        }
        assert_eq!(cache.0.lock().unwrap().by_question.len(), ENTRIES_MAX);
    }
}
