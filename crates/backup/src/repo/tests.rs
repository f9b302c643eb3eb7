//! One place, and several of which some are away.

use std::{fs, path::Path};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::seal::Encryption;

fn open(folders: &[&Path]) -> Repository {
    let locations: Vec<Location> = folders.iter().map(|folder| Location::Folder(folder.to_path_buf())).collect();
    Repository::open_all(&locations, Sealing::new(Encryption::Off), Keys::default()).unwrap()
}

async fn names(repo: &Repository) -> Vec<String> {
    repo.list("42").await.unwrap().into_iter().map(|listed| listed.name).collect()
}

async fn names_of_each(repo: &Repository) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (_, alone) in repo.alone() {
        all.push(names(&alone.unwrap()).await);
    }
    all
}

/// The disk is gone, for root as well.
fn block(folder: &Path) {
    fs::rename(folder, folder.with_extension("kept")).unwrap();
    fs::write(folder, "no folder").unwrap();
}

fn unblock(folder: &Path) {
    fs::remove_file(folder).unwrap();
    fs::rename(folder.with_extension("kept"), folder).unwrap();
}

#[tokio::test]
async fn objects_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let repo = open(&[&folder.path().join("repo")]);
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
    assert!(repo.get("42/wal/x").await.unwrap_err().is_not_found());
    assert_eq!(repo.list("42/none").await.unwrap(), []);
    // one that fails alone is never away
    block(&folder.path().join("repo"));
    repo.put("42/wal/x", Bytes::from_static(b"1")).await.unwrap_err();
    assert_eq!(repo.away(), []);
    unblock(&folder.path().join("repo"));
    repo.put("42/wal/x", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(repo.catch_up(&CancellationToken::new()).await.unwrap(), CaughtUp::default());
}

#[tokio::test]
async fn what_one_place_misses_is_brought_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let repo = open(&[&a, &b]);
    let stop = CancellationToken::new();
    repo.put("42/wal/1", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(names_of_each(&repo).await, [["42/wal/1"], ["42/wal/1"]]);

    block(&b);
    repo.put("42/wal/2", Bytes::from_static(b"22")).await.unwrap();
    let away = repo.away();
    assert!(away.len() == 1 && away[0].repository == b.display().to_string(), "{away:?}");
    assert!(away[0].why.contains("cannot write 42/wal/2"), "{away:?}");
    // it is back, and gets nothing before it has what it missed: the manifest would be there without its pack
    unblock(&b);
    repo.create("42/backups/x/manifest.json", b"{}".to_vec()).await.unwrap();
    for n in 0..30 {
        repo.put(&format!("42/wal/3-{n:02}"), Bytes::from_static(b"333")).await.unwrap();
    }
    assert_eq!(names_of_each(&repo).await[1], ["42/wal/1"]);
    assert_eq!(names(&repo).await.len(), 33);
    assert_eq!(repo.catch_up(&stop).await.unwrap(), CaughtUp { objects: 32, bytes: 2 + 2 + 90 });
    assert_eq!(repo.away(), []);
    let each = names_of_each(&repo).await;
    assert_eq!((each[0].len(), &each[0]), (33, &each[1]));
    assert_eq!(repo.catch_up(&stop).await.unwrap(), CaughtUp::default());

    // both were away at different times
    block(&b);
    repo.put("42/wal/4", Bytes::from_static(b"4")).await.unwrap();
    block(&a);
    repo.put("42/wal/5", Bytes::from_static(b"5")).await.unwrap_err();
    unblock(&b);
    repo.catch_up(&stop).await.unwrap();
    assert_eq!(repo.away().into_iter().map(|away| away.repository).collect::<Vec<_>>(), [a.display().to_string()]);
    repo.put("42/wal/5", Bytes::from_static(b"5")).await.unwrap();
    unblock(&a);
    repo.catch_up(&stop).await.unwrap();
    let each = names_of_each(&repo).await;
    assert!(each[0] == each[1] && each[0].len() == 35, "{each:?}");

    repo.delete("42/wal/4").await.unwrap();
    assert!(names_of_each(&repo).await.iter().all(|names| names.len() == 34));
    assert!(repo.create("42/backups/x/manifest.json", b"[]".to_vec()).await.unwrap_err().already_exists());
    assert_eq!(repo.away(), []);
}

#[tokio::test]
async fn a_place_that_cannot_be_opened_is_away_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    fs::write(&a, "no folder").unwrap();
    let repo = open(&[&a, &b]);
    assert_eq!(repo.away().len(), 1);
    repo.put("42/wal/1", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(repo.get("42/wal/1").await.unwrap(), "1");
    repo.catch_up(&CancellationToken::new()).await.unwrap();
    assert_eq!(repo.away().len(), 1);
    fs::remove_file(&a).unwrap();
    assert_eq!(repo.catch_up(&CancellationToken::new()).await.unwrap(), CaughtUp { objects: 1, bytes: 1 });
    assert_eq!((repo.away(), fs::read(a.join("42/wal/1")).unwrap()), (Vec::new(), b"1".to_vec()));
    fs::remove_dir_all(&a).unwrap();
    fs::remove_dir_all(&b).unwrap();
    fs::write(&a, "no folder").unwrap();
    fs::write(&b, "no folder").unwrap();
    let locations = [a, b].map(Location::Folder);
    let none = Repository::open_all(&locations, Sealing::new(Encryption::Off), Keys::default()).unwrap_err();
    assert!(none.to_string().contains("cannot make"), "{none}");
}

#[tokio::test]
async fn what_is_damaged_or_gone_in_one_place_is_read_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let repo = open(&[&a, &b]);
    let content = b"content".to_vec();
    let hash = blake3::hash(&content).to_hex().to_string();
    repo.put("42/wal/1", content.clone().into()).await.unwrap();
    fs::write(a.join("42/wal/1"), "kontent").unwrap();
    assert_eq!(repo.get("42/wal/1").await.unwrap(), "kontent");
    assert_eq!(repo.get_whole("42/wal/1", &hash).await.unwrap(), content);
    assert_eq!(repo.away(), []);
    fs::remove_file(a.join("42/wal/1")).unwrap();
    assert_eq!(repo.get("42/wal/1").await.unwrap(), content);
    fs::write(b.join("42/wal/1"), "kontent").unwrap();
    let error = repo.get_whole("42/wal/1", &hash).await.unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
    fs::remove_file(b.join("42/wal/1")).unwrap();
    assert!(repo.get_whole("42/wal/1", &hash).await.unwrap_err().is_not_found());
}

#[test]
fn buckets_are_named_with_their_prefix() {
    let location = Location::S3(S3Location {
        endpoint: Some("http://127.0.0.1:9000".to_owned()),
        region: "eu-central-1".to_owned(),
        bucket: "backups".to_owned(),
        prefix: "a/b".to_owned(),
        access_key: millrace_base::Secret::new("k"),
        secret_key: millrace_base::Secret::new("hunter2"),
        allow_http: true,
    });
    let repo = Repository::open(&location, Sealing::new(Encryption::Off), Keys::default()).unwrap();
    assert_eq!(repo.name(), "s3://backups/a/b");
    assert!(!format!("{repo:?} {location:?}").contains("hunter2"));
    let (key, _) = Keys::generate();
    let folder = tempfile::tempdir().unwrap();
    let both = [location, Location::Folder(folder.path().to_path_buf())];
    let repo = Repository::open_all(&both, Sealing::new(Encryption::Off), Keys::parse(&key).unwrap()).unwrap();
    assert_eq!(repo.name(), format!("s3://backups/a/b and {}", folder.path().display()));
}
