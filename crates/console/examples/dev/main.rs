//! The console alone, with made-up figures, for work on its pages:
//! `cargo run -p millrace-console --example dev [PORT]`, then log in as `dev` / `dev`.
//!
//! Plain HTTP on 127.0.0.1. The figures move every two seconds. With `LATE` or `FAIL` as a branch
//! filter a tile is late or fails.

mod made_up;

use std::{net::SocketAddr, sync::Arc};

use millrace_base::{Clock, Secret, SystemClock};
use millrace_console::{Accounts, ConsoleState};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).map_or(Ok(8499), |port| port.parse())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let accounts = Arc::new(Accounts::new(Arc::new(made_up::People::default()), clock.clone()));
    accounts.set_password("dev", Secret::new("dev")).await?;
    let source = Arc::new(made_up::Source::new(clock.clone()));
    let state = ConsoleState {
        catalog: Arc::new(made_up::catalog()),
        reader: source.clone(),
        operator: source,
        accounts,
        session_key: Secret::generate(),
        clock,
        name: "Kilima Finance".to_owned(),
        tls: false,
        shutdown: CancellationToken::new(),
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let service = millrace_console::router(state).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await?;
    Ok(())
}
