//! Server-sent events: the watermark moved.
//!
//! All open pages share one look at the warehouse per [`PERIOD`], made by whichever stream asks
//! first; no task runs while no page is open.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures::stream;
use millrace_base::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Console, Shared, security, session::Session, tile::Stamp};

/// How often the watermark is looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// How often an open page hears something, even when nothing moved.
const BEAT: Duration = Duration::from_secs(5);
const STREAMS_MAX: usize = 256;

/// The newest watermark known to the console.
#[derive(Debug)]
pub(crate) struct Pulse {
    clock: Arc<dyn Clock>,
    seen: Mutex<(Option<Duration>, Option<Stamp>)>,
    streams: Arc<Semaphore>,
}

impl Pulse {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, seen: Mutex::default(), streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }

    /// The watermark, not older than [`PERIOD`]. The one that finds it older claims the look first, so
    /// that others do not look too; they get what was there.
    pub(crate) async fn newest(&self, console: &Console) -> Option<Stamp> {
        let now = self.clock.monotonic();
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.0.is_some_and(|at| now.saturating_sub(at) < PERIOD) {
                return seen.1;
            }
            seen.0 = Some(now);
        }
        let looked = tokio::time::timeout(Duration::from_secs(5), console.state.reader.freshness()).await;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Ok(freshness)) = looked {
            seen.1 = Some(freshness.into());
        }
        seen.1
    }
}

struct Live {
    console: Shared,
    _permit: OwnedSemaphorePermit,
    session: Session,
    sent: Option<Stamp>,
    silent: Duration,
}

/// `GET /events`: an event `watermark` whenever it moved, and at least every five seconds. Ends with the
/// session; the page then asks anew and is told.
pub(crate) async fn events(State(console): State<Shared>, Extension(session): Extension<Session>) -> Response {
    let Ok(permit) = console.pulse.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many open pages").into_response();
    };
    let live = Live { console, _permit: permit, session, sent: None, silent: BEAT };
    let events = stream::unfold(live, |mut live| async move {
        loop {
            // asks the store no oftener than a page does
            let ended = !security::is_good(&live.console, &live.session).await.unwrap_or(false);
            if ended || live.console.state.shutdown.is_cancelled() {
                return None;
            }
            let newest = live.console.pulse.newest(&live.console).await;
            let moved = match (newest, live.sent) {
                (Some(new), Some(old)) => new.lsn != old.lsn || new.run_id != old.run_id,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if moved || live.silent >= BEAT {
                live.silent = Duration::ZERO;
                live.sent = newest.or(live.sent);
                let data = serde_json::json!({ "now": live.console.state.clock.wall().0, "freshness": live.sent });
                return Some((Ok::<_, Infallible>(Event::default().event("watermark").data(data.to_string())), live));
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => live.silent += PERIOD,
                () = live.console.state.shutdown.cancelled() => return None,
            }
        }
    });
    let mut response = Sse::new(events).into_response();
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}
