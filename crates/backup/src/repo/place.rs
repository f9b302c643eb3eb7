//! One folder or bucket.

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use millrace_base::{Micros, Secret, files};
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
    aws::{AmazonS3Builder, S3ConditionalPut},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem,
    path::Path,
};

use crate::error::BackupError;

/// Attempts of the store's client beyond the first: with its pauses about six seconds. A bucket that is asked too much
/// refuses for longer than one, and a wrong address should be told of soon.
const RETRIES: usize = 6;
/// Writes with a condition that are sent again after an answer that was lost.
const LOST_ANSWERS: u32 = 3;

/// Where a repository is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder, made if it is not there.
    Folder(PathBuf),
    S3(S3Location),
    Azure(AzureLocation),
    Google(GoogleLocation),
}

impl Location {
    /// For messages: the folder, or `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::S3(s3) => format!("s3://{}/{}", s3.bucket, s3.prefix),
            Self::Azure(azure) => format!("az://{}/{}", azure.container, azure.prefix),
            Self::Google(google) => format!("gs://{}/{}", google.bucket, google.prefix),
        }
    }
}

/// A bucket of S3, or of what speaks it.
#[derive(Debug, Clone)]
pub struct S3Location {
    /// `None`: AWS itself.
    pub endpoint: Option<String>,
    pub region: String,
    pub bucket: String,
    /// Everything lies below this; empty for the whole bucket.
    pub prefix: String,
    pub access_key: Secret,
    pub secret_key: Secret,
    /// Plain HTTP, for a server on the same host.
    pub allow_http: bool,
}

/// A container of Azure's Blob Storage.
#[derive(Debug, Clone)]
pub struct AzureLocation {
    /// With the account in its path, as emulators have it; `None`: Azure itself.
    pub endpoint: Option<String>,
    pub container: String,
    /// Everything lies below this; empty for the whole container.
    pub prefix: String,
    pub account: String,
    /// The account's access key.
    pub key: Secret,
}

/// A bucket of Google's Cloud Storage.
#[derive(Debug, Clone)]
pub struct GoogleLocation {
    pub bucket: String,
    /// Everything lies below this; empty for the whole bucket.
    pub prefix: String,
    /// The JSON file with the key of a service account.
    pub service_account: PathBuf,
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name within the repository.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) written: Micros,
}

/// An open one; cheap to clone.
#[derive(Clone)]
pub(super) struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    name: Arc<str>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Place {
    /// A bucket is not asked yet.
    pub(super) fn open(location: &Location) -> Result<Self, BackupError> {
        let name = location.name();
        let (store, prefix) = match location {
            Location::Folder(folder) => {
                files::create_dir_all(folder, 0o700).map_err(BackupError::io("make", folder))?;
                let store = LocalFileSystem::new_with_prefix(folder).map_err(bad(&name))?;
                let store: Arc<dyn ObjectStore> = Arc::new(store.with_fsync(true));
                (store, Path::default())
            }
            Location::S3(s3) => (open_s3(s3).map_err(bad(&name))?, parse(&name, &s3.prefix)?),
            Location::Azure(azure) => (open_azure(azure).map_err(bad(&name))?, parse(&name, &azure.prefix)?),
            Location::Google(google) => (open_google(google).map_err(bad(&name))?, parse(&name, &google.prefix)?),
        };
        Ok(Self { store, prefix, name: name.into() })
    }

    fn path(&self, object: &str) -> Path {
        // the names within a repository are made of letters, digits, `.`, `-`, `_` and slashes
        self.prefix.parts().chain(Path::from(object).parts()).collect()
    }

    fn failed(&self, doing: &'static str, object: &str) -> impl FnOnce(object_store::Error) -> BackupError {
        let (repository, object) = (self.name.to_string(), object.to_owned());
        move |source| BackupError::Repository { repository, doing, object, source: Box::new(source) }
    }

    /// Writes an object that is not there yet. Returns once it is durable.
    ///
    /// One that is there with the same content is fine: a request whose answer was lost is sent again, which the store's
    /// client does not do by itself for a write with a condition.
    pub(super) async fn create(&self, object: &str, bytes: &Bytes) -> Result<(), BackupError> {
        let mut lost = 0;
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&self.path(object), bytes.clone().into(), options).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. }) if self.get(object).await? == *bytes => return Ok(()),
                Err(object_store::Error::Generic { .. }) if lost < LOST_ANSWERS => lost += 1,
                Err(error) => return Err(self.failed("write", object)(error)),
            }
        }
    }

    pub(super) async fn put(&self, object: &str, bytes: Bytes) -> Result<(), BackupError> {
        let put = self.store.put(&self.path(object), bytes.into()).await;
        put.map(drop).map_err(self.failed("write", object))
    }

    /// Within the place, which does the work itself.
    pub(super) async fn copy(&self, from: &str, to: &str) -> Result<(), BackupError> {
        self.store.copy(&self.path(from), &self.path(to)).await.map_err(self.failed("copy", from))
    }

    pub(super) async fn get(&self, object: &str) -> Result<Bytes, BackupError> {
        let got = self.store.get(&self.path(object)).await.map_err(self.failed("read", object))?;
        got.bytes().await.map_err(self.failed("read", object))
    }

    pub(super) async fn delete(&self, object: &str) -> Result<(), BackupError> {
        match self.store.delete(&self.path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", object)(error)),
        }
    }

    pub(super) async fn list(&self, folder: &str) -> Result<Vec<Listed>, BackupError> {
        let skip = self.prefix.parts().count();
        let found: Vec<_> =
            self.store.list(Some(&self.path(folder))).try_collect().await.map_err(self.failed("list", folder))?;
        let listed = found.into_iter().map(|meta| Listed {
            name: meta.location.parts().skip(skip).collect::<Path>().to_string(),
            bytes: meta.size,
            written: Micros(meta.last_modified.timestamp_micros()),
        });
        Ok(listed.collect())
    }

    pub(super) async fn folders(&self, folder: &str) -> Result<Vec<String>, BackupError> {
        let listed =
            self.store.list_with_delimiter(Some(&self.path(folder))).await.map_err(self.failed("list", folder))?;
        let name = |path: &Path| path.parts().next_back().map(|part| part.as_ref().to_owned());
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }
}

fn bad(name: &str) -> impl FnOnce(object_store::Error) -> BackupError {
    let repository = name.to_owned();
    move |error| BackupError::BadRepository { repository, reason: error.to_string() }
}

fn parse(name: &str, prefix: &str) -> Result<Path, BackupError> {
    Path::parse(prefix).map_err(|error| bad(name)(error.into()))
}

/// The HTTP client wants the process to have chosen its cryptography; that another part did so already is as good.
fn choose_cryptography() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES, ..RetryConfig::default() }
}

fn open_s3(s3: &S3Location) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    choose_cryptography();
    let mut builder = AmazonS3Builder::new()
        .with_region(&s3.region)
        .with_bucket_name(&s3.bucket)
        .with_access_key_id(s3.access_key.reveal())
        .with_secret_access_key(s3.secret_key.reveal())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retry())
        .with_allow_http(s3.allow_http);
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    Ok(Arc::new(builder.build()?))
}

fn open_azure(azure: &AzureLocation) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    choose_cryptography();
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(&azure.container)
        .with_account(&azure.account)
        .with_access_key(azure.key.reveal())
        .with_retry(retry());
    if let Some(endpoint) = &azure.endpoint {
        builder = builder.with_endpoint(endpoint.clone()).with_allow_http(endpoint.starts_with("http://"));
    }
    Ok(Arc::new(builder.build()?))
}

fn open_google(google: &GoogleLocation) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    choose_cryptography();
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&google.bucket)
        .with_service_account_path(google.service_account.display().to_string())
        .with_retry(retry());
    Ok(Arc::new(builder.build()?))
}
