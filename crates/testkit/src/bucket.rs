//! A bucket of S3 inside the test's process: real HTTP, signatures and conditional writes, objects as files in a folder.
//! It can be told to misbehave as the real ones do.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{Body, HttpError, HttpRequest, HttpResponse, auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::{net::TcpListener, task::JoinSet};

/// A running bucket. Dropping it ends it; the folder stays with its owner.
#[derive(Debug)]
pub struct Bucket {
    port: u16,
    folder: PathBuf,
    faults: Arc<Faults>,
    _serving: JoinSet<()>,
}

/// What goes wrong from now on; nothing at first.
#[derive(Debug, Default)]
pub struct Faults {
    /// Every so many requests one is refused with `503 SlowDown` before it is looked at; 0: none.
    pub refused_every: AtomicU64,
    /// Every so many requests one is carried out, and its answer lost with the connection; 0: none.
    pub unanswered_every: AtomicU64,
    /// Every request is refused with `503`.
    pub away: AtomicBool,
    /// Every request waits so long before it is looked at.
    pub delay_ms: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    /// How often in a row what was asked for last has gone wrong, by method and path.
    struck: Mutex<HashMap<String, u32>>,
}

/// The same request goes wrong at most as often, one time after the other, unless the bucket is away.
const IN_A_ROW: u32 = 2;

#[derive(Clone, Copy)]
enum Fate {
    Served,
    Refused,
    Unanswered,
}

impl Faults {
    fn next(&self, asked: String) -> Fate {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if self.away.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Fate::Refused;
        }
        let due = |every: &AtomicU64| match every.load(Ordering::SeqCst) {
            0 => false,
            every => number.is_multiple_of(every),
        };
        let mut struck = self.struck.lock().expect("no holder panics");
        let (times, fate) = match struck.get(&asked).copied().unwrap_or_default() {
            // with many connections at once chance would strike one of them for ever
            IN_A_ROW.. => (0, Fate::Served),
            times if due(&self.refused_every) => (times + 1, Fate::Refused),
            times if due(&self.unanswered_every) => (times + 1, Fate::Unanswered),
            _ => (0, Fate::Served),
        };
        struck.insert(asked, times);
        match fate {
            Fate::Served => 0,
            Fate::Refused => self.refused.fetch_add(1, Ordering::SeqCst),
            Fate::Unanswered => self.unanswered.fetch_add(1, Ordering::SeqCst),
        };
        fate
    }

    /// Requests so far: all, those refused, those that were left without an answer.
    #[must_use]
    pub fn seen(&self) -> (u64, u64, u64) {
        let [all, refused, unanswered] =
            [&self.requests, &self.refused, &self.unanswered].map(|n| n.load(Ordering::SeqCst));
        (all, refused, unanswered)
    }
}

impl Bucket {
    /// The name of the one bucket there is: short, because the server makes a file name of it, of the whole key, and of 30
    /// characters more.
    pub const NAME: &str = "box";
    pub const ACCESS_KEY: &str = "millrace-access";
    pub const SECRET_KEY: &str = "millrace-secret";

    /// Serves `folder`, which is made, on a free port of this host.
    ///
    /// # Panics
    /// If the folder or the port cannot be had.
    pub async fn serve(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join(Self::NAME)).expect("the bucket's folder is made");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).expect("a folder can be served"));
        builder.set_auth(SimpleAuth::from_single(Self::ACCESS_KEY, Self::SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let faults = Arc::new(Faults::default());
        let mut serving = JoinSet::new();
        let shared = faults.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (service, faults) = (service.clone(), shared.clone());
                connections.spawn(async move {
                    let answer = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                        let (service, faults) = (service.clone(), faults.clone());
                        async move { serve(&faults, service, request.map(Body::from)).await }
                    });
                    let http = auto::Builder::new(TokioExecutor::new());
                    // a connection that breaks is the client's affair
                    drop(http.serve_connection(TokioIo::new(socket), answer).await);
                });
            }
        });
        Self { port, folder: folder.join(Self::NAME), faults, _serving: serving }
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where its objects lie, one file each, by their keys.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

async fn serve(
    faults: &Faults,
    service: s3s::service::S3Service,
    request: HttpRequest,
) -> Result<HttpResponse, HttpError> {
    match faults.delay_ms.load(Ordering::SeqCst) {
        0 => {}
        ms => tokio::time::sleep(Duration::from_millis(ms)).await, // tidy: allow, a slow bucket is what the test wants
    }
    match faults.next(format!("{} {}", request.method(), request.uri().path())) {
        Fate::Served => service.call(request).await,
        Fate::Refused => {
            let body = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
            let mut answer = HttpResponse::new(Body::from(body.to_owned()));
            *answer.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
            Ok(answer)
        }
        Fate::Unanswered => {
            drop(service.call(request).await?);
            // hyper closes the connection
            Err(HttpError::new(Box::new(std::io::Error::other("the answer is lost, as the test wants it"))))
        }
    }
}
