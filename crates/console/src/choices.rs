//! The values that filters offer.
//!
//! They change seldom and may take long to find, so they are kept for a while, and a list that cannot be
//! found anew is offered as it was: a field must not change its kind because the warehouse is busy.
//! Bounded by the pack: one list for each parameter with choices.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use millrace_contract::{Query, report::Param};

use crate::{Console, format};

/// How long a page waits for a list.
const DEADLINE: Duration = Duration::from_millis(1200);
/// How long a list is offered without looking again.
const FRESH: Duration = Duration::from_secs(30);
/// Values offered by a filter.
const VALUES_MAX: usize = 500;

type List = Arc<[String]>;

/// The lists by the statement that finds them.
#[derive(Debug, Default)]
pub(crate) struct Choices(Mutex<HashMap<String, (Duration, List)>>);

impl Choices {
    /// The values to choose from; empty if there are none, or none could be found so far.
    pub(crate) async fn of(&self, console: &Console, param: &Param) -> List {
        let Some(sql) = &param.choices_sql else { return List::default() };
        let now = console.state.clock.monotonic();
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some((at, list)) = &kept
            && now.saturating_sub(*at) < FRESH
        {
            return list.clone();
        }
        let Some(list) = ask(console, param, sql).await else { return kept.map(|(_, list)| list).unwrap_or_default() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(sql.clone(), (now, list.clone()));
        list
    }
}

async fn ask(console: &Console, param: &Param, sql: &str) -> Option<List> {
    let mut query = Query::new(sql.to_owned());
    query.deadline = DEADLINE;
    let answer = async { console.state.reader.query(query).await?.collect(VALUES_MAX).await };
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(Ok(set)) => {
            let values = set.rows.iter().filter_map(|row| row.first()).map(format::plain);
            Some(values.filter(|text| !text.is_empty()).collect())
        }
        Ok(Err(error)) => {
            tracing::warn!(param = param.name, sqlstate = error.sqlstate, "a filter's choices failed");
            None
        }
        Err(_) => None,
    }
}
