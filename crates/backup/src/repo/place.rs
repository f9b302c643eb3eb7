//! One folder or bucket.

use std::{cmp::Ordering, fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use millrace_base::{Micros, Secret, files};
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
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
    /// It lists objects by name.
    in_order: bool,
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
        // the protocols of the three promise it for what is not a directory bucket; a file system promises nothing
        let in_order = !matches!(location, Location::Folder(_));
        Ok(Self { store, prefix, name: name.into(), in_order })
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
        let found: Vec<_> =
            self.store.list(Some(&self.path(folder))).try_collect().await.map_err(self.failed("list", folder))?;
        Ok(found.into_iter().map(|meta| self.listed(meta)).collect())
    }

    /// As [`Repository::list_between`](super::Repository::list_between) says.
    pub(super) async fn list_between(&self, folder: &str, from: &str, until: &str) -> Result<Vec<Listed>, BackupError> {
        let below = self.path(folder);
        let depth = below.parts().count();
        // the offset itself is not listed, but no object has the beginning of a name as its name
        let mut found = self.store.list_with_offset(Some(&below), &self.path(&format!("{folder}/{from}")));
        let mut listed = Vec::new();
        while let Some(meta) = found.try_next().await.map_err(self.failed("list", folder))? {
            let name = meta.location.parts().nth(depth).map(|part| part.as_ref().to_owned()).unwrap_or_default();
            match place_of(&name, from, until) {
                Ordering::Less => {}
                Ordering::Equal => listed.push(self.listed(meta)),
                // what is not asked for is not sent: the next page is requested when this one has been read
                Ordering::Greater if self.in_order => break,
                Ordering::Greater => {}
            }
        }
        Ok(listed)
    }

    fn listed(&self, meta: ObjectMeta) -> Listed {
        let skip = self.prefix.parts().count();
        Listed {
            name: meta.location.parts().skip(skip).collect::<Path>().to_string(),
            bytes: meta.size,
            written: Micros(meta.last_modified.timestamp_micros()),
        }
    }

    pub(super) async fn folders(&self, folder: &str) -> Result<Vec<String>, BackupError> {
        let listed =
            self.store.list_with_delimiter(Some(&self.path(folder))).await.map_err(self.failed("list", folder))?;
        let name = |path: &Path| path.parts().next_back().map(|part| part.as_ref().to_owned());
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }
}

/// Whether a name comes before what begins with `from`, after what begins with `until`, or between.
fn place_of(name: &str, from: &str, until: &str) -> Ordering {
    if name < from {
        return Ordering::Less;
    }
    match name.get(..until.len()).unwrap_or(name) > until {
        true => Ordering::Greater,
        false => Ordering::Equal,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_both_ends_lies_between() {
        let place = |name| place_of(name, "0A.history", "0C");
        assert_eq!(["0", "0A.gone", "09"].map(place), [Ordering::Less; 3]);
        assert_eq!(
            ["0A.history", "0A.history.x.zst", "0B", "0C", "0C.partial", "0C0"].map(place),
            [Ordering::Equal; 6]
        );
        assert_eq!(["0D", "0D.partial", "1", "a"].map(place), [Ordering::Greater; 4]);
    }
}
