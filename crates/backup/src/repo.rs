//! Where backups and log are kept: a folder, or a bucket of S3 or of what speaks like it.
//!
//! An object appears whole or not at all, and once this crate has written it, it is durable. Objects hold nothing
//! that another place would have to explain: see the crate's page for the layout.

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use millrace_base::{Micros, Secret, files};
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
    aws::{AmazonS3Builder, S3ConditionalPut},
    local::LocalFileSystem,
    path::Path,
};

use crate::{
    error::BackupError,
    seal::{Keys, Sealing},
};

/// Where a repository is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder, made if it is not there.
    Folder(PathBuf),
    S3(S3Location),
}

/// A bucket.
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

/// An open repository; cheap to clone.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    name: String,
    pub(crate) sealing: Sealing,
    pub(crate) keys: Keys,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("name", &self.name).field("sealing", &self.sealing).finish_non_exhaustive()
    }
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name within the repository.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) written: Micros,
}

impl Repository {
    /// Opens it. `sealing` is for what is written; `keys` are for what is read, and may be empty where only full
    /// backups and log are written.
    ///
    /// # Errors
    /// If the folder cannot be made or the bucket's description is not usable. A bucket is not asked yet.
    pub fn open(location: &Location, sealing: Sealing, keys: Keys) -> Result<Self, BackupError> {
        let (store, prefix, name) = match location {
            Location::Folder(folder) => {
                files::create_dir_all(folder, 0o700).map_err(BackupError::io("make", folder))?;
                let store = LocalFileSystem::new_with_prefix(folder).map_err(bad(&folder.display().to_string()))?;
                let store: Arc<dyn ObjectStore> = Arc::new(store.with_fsync(true));
                (store, Path::default(), folder.display().to_string())
            }
            Location::S3(s3) => {
                let name = format!("s3://{}/{}", s3.bucket, s3.prefix);
                let prefix = Path::parse(&s3.prefix).map_err(|error| BackupError::BadRepository {
                    repository: name.clone(),
                    reason: error.to_string(),
                })?;
                (open_s3(s3).map_err(bad(&name))?, prefix, name)
            }
        };
        Ok(Self { store, prefix, name, sealing, keys })
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self, object: &str) -> Path {
        // the names within a repository are made of letters, digits, `.`, `-`, `_` and slashes
        self.prefix.parts().chain(Path::from(object).parts()).collect()
    }

    fn failed(&self, doing: &'static str, object: &str) -> impl FnOnce(object_store::Error) -> BackupError {
        let (repository, object) = (self.name.clone(), object.to_owned());
        move |source| BackupError::Repository { repository, doing, object, source: Box::new(source) }
    }

    /// Writes an object that is not there yet. Returns once it is durable.
    ///
    /// One that is there with the same content is fine: a request whose answer was lost is sent again.
    pub(crate) async fn create(&self, object: &str, bytes: Vec<u8>) -> Result<(), BackupError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let bytes = Bytes::from(bytes);
        match self.store.put_opts(&self.path(object), bytes.clone().into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) if self.get(object).await? == bytes => Ok(()),
            Err(error) => Err(self.failed("write", object)(error)),
        }
    }

    /// Writes an object whose name tells its content: writing it again changes nothing.
    pub(crate) async fn put(&self, object: &str, bytes: Bytes) -> Result<(), BackupError> {
        let put = self.store.put(&self.path(object), bytes.into()).await;
        put.map(drop).map_err(self.failed("write", object))
    }

    pub(crate) async fn get(&self, object: &str) -> Result<Bytes, BackupError> {
        let got = self.store.get(&self.path(object)).await.map_err(self.failed("read", object))?;
        got.bytes().await.map_err(self.failed("read", object))
    }

    /// That it is not there is no error.
    pub(crate) async fn delete(&self, object: &str) -> Result<(), BackupError> {
        match self.store.delete(&self.path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", object)(error)),
        }
    }

    /// All objects below a folder, by name.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Listed>, BackupError> {
        let skip = self.prefix.parts().count();
        let found: Vec<_> =
            self.store.list(Some(&self.path(folder))).try_collect().await.map_err(self.failed("list", folder))?;
        let mut all: Vec<Listed> = found
            .into_iter()
            .map(|meta| Listed {
                name: meta.location.parts().skip(skip).collect::<Path>().to_string(),
                bytes: meta.size,
                written: Micros(meta.last_modified.timestamp_micros()),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The names of the folders right below one.
    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>, BackupError> {
        let listed =
            self.store.list_with_delimiter(Some(&self.path(folder))).await.map_err(self.failed("list", folder))?;
        let name = |path: &Path| path.parts().next_back().map(|part| part.as_ref().to_owned());
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }

    /// The clusters that have something here, by their system identifiers.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub async fn clusters(&self) -> Result<Vec<u64>, BackupError> {
        Ok(self.folders("").await?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

fn bad(name: &str) -> impl FnOnce(object_store::Error) -> BackupError {
    let repository = name.to_owned();
    move |error| BackupError::BadRepository { repository, reason: error.to_string() }
}

fn open_s3(s3: &S3Location) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    // the HTTP client wants the process to have chosen; that another part did so already is as good
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = AmazonS3Builder::new()
        .with_region(&s3.region)
        .with_bucket_name(&s3.bucket)
        .with_access_key_id(s3.access_key.reveal())
        .with_secret_access_key(s3.secret_key.reveal())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig { max_retries: 3, ..RetryConfig::default() })
        .with_allow_http(s3.allow_http);
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    Ok(Arc::new(builder.build()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Encryption;

    #[tokio::test]
    async fn objects_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Folder(folder.path().join("repo"));
        let repo = Repository::open(&location, Sealing::new(Encryption::Off), Keys::default()).unwrap();
        repo.create("42/backups/a/manifest.json", b"{}".to_vec()).await.unwrap();
        repo.create("42/backups/a/manifest.json", b"{}".to_vec()).await.unwrap();
        assert!(repo.create("42/backups/a/manifest.json", b"[]".to_vec()).await.unwrap_err().already_exists());
        repo.put("42/wal/x", Bytes::from_static(b"1")).await.unwrap();
        repo.put("42/wal/x", Bytes::from_static(b"1")).await.unwrap();
        assert_eq!(repo.get("42/backups/a/manifest.json").await.unwrap(), "{}");
        assert_eq!(repo.folders("42").await.unwrap(), ["backups", "wal"]);
        assert_eq!(repo.clusters().await.unwrap(), [42]);
        let names: Vec<_> = repo.list("42").await.unwrap().into_iter().map(|o| (o.name, o.bytes)).collect();
        assert_eq!(names, [("42/backups/a/manifest.json".to_owned(), 2), ("42/wal/x".to_owned(), 1)]);
        repo.delete("42/wal/x").await.unwrap();
        repo.delete("42/wal/x").await.unwrap();
        assert!(repo.get("42/wal/x").await.is_err());
        assert_eq!(repo.list("42/none").await.unwrap(), []);
    }

    #[test]
    fn a_bucket_opens_without_asking_it() {
        let location = Location::S3(S3Location {
            endpoint: Some("http://127.0.0.1:9".to_owned()),
            region: "us-east-1".to_owned(),
            bucket: "backups".to_owned(),
            prefix: "a/b".to_owned(),
            access_key: Secret::new("key"),
            secret_key: Secret::new("hunter2"),
            allow_http: true,
        });
        let repo = Repository::open(&location, Sealing::new(Encryption::Off), Keys::default()).unwrap();
        assert_eq!(repo.name(), "s3://backups/a/b");
        assert_eq!(repo.path("1/wal").to_string(), "a/b/1/wal");
        assert!(!format!("{repo:?} {location:?}").contains("hunter2"));
    }
}
