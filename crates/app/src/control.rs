//! The control socket: how the command line talks to the running platform.
//!
//! HTTP over a Unix socket in the platform's run folder, which only its owner can enter; so no
//! further login. Non-goal: remote control, which is the console's.

use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{UnixListener, UnixStream};

use millrace_contract::operate::OperateError;

const SOCKET: &str = "control.sock";

/// A path to the socket that fits into `sockaddr_un` (108 bytes) however deep the folder is:
/// long ones go through the folder's descriptor. The guard must live while the path is used.
#[derive(Debug)]
struct ShortPath {
    path: PathBuf,
    _folder: Option<std::fs::File>,
}

fn short_path(run_folder: &Path) -> io::Result<ShortPath> {
    let path = run_folder.join(SOCKET);
    if path.as_os_str().len() < 100 {
        return Ok(ShortPath { path, _folder: None });
    }
    let folder = std::fs::File::open(run_folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
    Ok(ShortPath { path, _folder: Some(folder) })
}

/// Binds the socket anew; the caller holds the platform's lock, so a file left over is stale.
pub(crate) fn bind(run_folder: &Path) -> anyhow::Result<UnixListener> {
    let socket = short_path(run_folder)?;
    match std::fs::remove_file(&socket.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the stale control socket");
        }
        _ => {}
    }
    UnixListener::bind(&socket.path).with_context(|| format!("cannot listen on {}", run_folder.join(SOCKET).display()))
}

/// A running platform as seen from the command line.
#[derive(Debug)]
pub(crate) struct Client {
    run_folder: PathBuf,
}

impl Client {
    pub(crate) fn new(run_folder: impl Into<PathBuf>) -> Self {
        Self { run_folder: run_folder.into() }
    }

    /// Asks and reads the JSON answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, deadline: Duration) -> anyhow::Result<T> {
        self.send(Method::GET, path, &(), deadline).await
    }

    /// Tells and reads the JSON answer.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> anyhow::Result<T> {
        self.send(Method::POST, path, body, deadline).await
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let socket = short_path(&self.run_folder)?;
        UnixStream::connect(&socket.path).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> anyhow::Result<T> {
        let stream = match self.connect().await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                bail!("the platform is not running\n  hint: start it with `millrace up`")
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                bail!("the platform belongs to another user\n  hint: run this as the user who started it")
            }
            Err(error) => return Err(error).context("cannot reach the platform"),
        };
        let work = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "millrace")
                .header("content-type", "application/json")
                .body(Body::from(serde_json::to_vec(body)?))?;
            let exchange = async {
                let response = sender.send_request(request).await?;
                let good = response.status().is_success();
                let bytes = response.into_body().collect().await?.to_bytes();
                anyhow::Ok((good, bytes))
            };
            tokio::pin!(connection);
            let mut exchange = std::pin::pin!(exchange);
            let (good, bytes) = tokio::select! {
                // the connection must be driven for the exchange to go on; it ends only on failure or after it
                ended = &mut connection => { ended?; exchange.await? }
                done = &mut exchange => done?,
            };
            if good {
                return serde_json::from_slice(&bytes)
                    .context("the platform's answer is not understood; is it another version?");
            }
            match serde_json::from_slice::<OperateError>(&bytes) {
                Ok(error) => match error.hint {
                    Some(hint) => bail!("{}\n  hint: {hint}", error.message),
                    None => bail!("{}", error.message),
                },
                Err(_) => bail!("the platform refused: {}", String::from_utf8_lossy(&bytes)),
            }
        };
        tokio::time::timeout(deadline, work)
            .await
            .with_context(|| format!("the platform did not answer within {} s", deadline.as_secs()))?
    }
}
