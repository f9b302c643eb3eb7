//! Waiting for what a test expects, never for a fixed time.

use std::{future::Future, net::TcpListener, time::Duration};

use tokio::time::{Instant, sleep};

/// Waits until `condition` holds, looking again every 20 ms.
///
/// # Panics
/// If it does not hold within `deadline`.
#[track_caller]
pub fn wait_until<C, F>(deadline: Duration, mut condition: C) -> impl Future<Output = ()>
where
    C: FnMut() -> F,
    F: Future<Output = bool>,
{
    let caller = std::panic::Location::caller();
    async move {
        let until = Instant::now() + deadline;
        while !condition().await {
            assert!(Instant::now() < until, "what {caller} waits for did not come within {deadline:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A port of the loopback that nothing listens on now and the system does not hand out itself.
///
/// Taken from below the system's own range, spread by process, so that tests in parallel rarely
/// meet; a test that starts a server must still be ready to try another.
///
/// # Panics
/// If none is free.
#[must_use]
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    const FIRST: u16 = 20_000;
    const SPAN: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);

    let spread = u16::try_from((std::process::id() * 37) % u32::from(SPAN)).unwrap_or(0);
    (0..SPAN)
        .map(|_| FIRST + (spread + NEXT.fetch_add(1, Ordering::Relaxed) % SPAN) % SPAN)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ() {
        let ports = [free_port(), free_port(), free_port()];
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
    }

    #[tokio::test]
    #[should_panic(expected = "did not come within")]
    async fn waiting_ends() {
        wait_until(Duration::from_millis(50), || async { false }).await;
    }
}
