//! Restores that share the blocks of a base, on a file system that can and on one that cannot.
#![expect(clippy::print_stdout, reason = "a test that tests nothing says so")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use millrace_backup::{
    BackupError, Files, Kind, Manifest, ProveOptions,
    base::{self, BaseUse},
    plan::Target,
    prove, restore,
};
use millrace_pg::{ConnectParams, ServerSpec, StopMode, connect};
use millrace_testkit::{Sandbox, TestServer, free_port, wait_until};
use tokio_util::sync::CancellationToken;

use crate::common::*;

/// A server with two backups that rest on each other, and where they can be restored.
struct Lab {
    server: TestServer,
    kept: Kept,
    id: u64,
    full: Manifest,
    part: Manifest,
    sandbox: Sandbox,
    /// Of this the newest point has the sum.
    sum: i64,
}

const SUM: &str = "SELECT sum(n)::bigint FROM t";

async fn lab() -> Lab {
    let server = TestServer::start().await;
    let client = server.create_database("app").await;
    let id = system_id(&client).await;
    let sandbox = Sandbox::new();
    let kept = repository(&sandbox.path().join("repository"));
    let mut receiver = Receiver::start(&kept.repo, server.params());
    let made = "CREATE TABLE t AS SELECT n::bigint, md5(n::text) AS filler FROM generate_series(1, 1500000) AS n;
                CREATE TABLE empty (n int); CHECKPOINT";
    client.batch_execute(made).await.unwrap();
    let full = back_up(&kept.repo, &server, Kind::Full).await.manifest;
    client.batch_execute("UPDATE t SET n = -n WHERE n % 100000 = 7").await.unwrap();
    let part = back_up(&kept.repo, &server, Kind::Incremental).await.manifest;
    client.batch_execute("INSERT INTO t VALUES (-5)").await.unwrap();
    receiver.durable(position(&client).await).await;
    receiver.stop().await;
    let sum = numbers(&client, SUM).await[0];
    Lab { server, kept, id, full, part, sandbox, sum }
}

impl Lab {
    /// A folder, which is made.
    fn folder(&self, within: &Path, name: &str) -> ServerSpec {
        let folder = within.join(name);
        fs::create_dir(&folder).unwrap();
        self.server.spec().run_as.own(&folder).unwrap();
        ServerSpec { log_file: folder.join("log"), folder, port: free_port(), ..self.server.spec().clone() }
    }

    async fn restore(&self, to: &ServerSpec, base: &Path, backup: &Manifest) -> Result<Files, BackupError> {
        let mut options = restore_options(to, Target::Latest);
        options.backup = Some(backup.label.clone());
        options.base = Some(BaseUse { folder: base.to_owned(), take: true });
        let done = restore(&self.kept.repo, self.id, &options, &*quiet(), &CancellationToken::new()).await;
        done.map(|restored| restored.files)
    }

    /// Starts what was restored, looks at it, changes it, and stops it.
    async fn live(&self, spec: &ServerSpec) {
        spec.configure(None).unwrap();
        let mut postmaster = spec.start().await.unwrap();
        if let Err(error) = postmaster.ready(SOON).await {
            panic!("{error}\n{}", fs::read_to_string(&spec.log_file).unwrap_or_default());
        }
        let params = ConnectParams { port: spec.port, ..self.server.params() };
        let client = connect(&params.to_database("app"), SOON).await.unwrap();
        wait_until(SOON, || async { numbers(&client, "SELECT pg_is_in_recovery()::int::bigint").await == [0] }).await;
        assert_eq!(numbers(&client, SUM).await, [self.sum]);
        client.batch_execute("UPDATE t SET n = 0 WHERE n < 1000; CHECKPOINT").await.unwrap();
        drop(client);
        postmaster.stop(StopMode::Fast, SOON).await.unwrap();
    }

    fn prove_options(&self, scratch: PathBuf, base: &Path) -> ProveOptions {
        ProveOptions {
            rules: Vec::new(),
            scratch,
            binaries: self.server.spec().binaries.clone(),
            run_as: self.server.spec().run_as.clone(),
            superuser: "postgres".to_owned(),
            target: Target::Latest,
            backup: Some(self.part.label.clone()),
            threads: 2,
            deadline: SOON,
            base: Some(base.to_owned()),
        }
    }
}

/// Every file with its mode, owner and content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, blake3::Hash)> {
    let of = |path: PathBuf| {
        let meta = fs::metadata(&path).unwrap();
        let hash = blake3::hash(&fs::read(&path).unwrap());
        (path.strip_prefix(folder).unwrap().to_owned(), (meta.mode(), meta.uid(), hash))
    };
    walk(folder).into_iter().map(of).collect()
}

fn used_bytes(folder: &Path) -> u64 {
    let stat = rustix::fs::statvfs(folder).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A mark as this crate writes it.
fn marked(mark: &base::Base) -> String {
    let content = serde_json::to_string(mark).unwrap();
    format!("{{\"blake3\":\"{}\",\"content\":{content}}}\n", blake3::hash(content.as_bytes()).to_hex())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blocks_cannot_be_shared_all_is_as_without_a_base_and_nothing_is_left() {
    let lab = lab().await;
    // memory never shares
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let base = memory.path().join("base");
    for name in ["first", "second"] {
        let spec = lab.folder(lab.sandbox.path(), name);
        assert_eq!(lab.restore(&spec, &base, &lab.part).await.unwrap(), Files::Written);
        assert_eq!(names(memory.path()), [] as [&str; 0]);
        lab.live(&spec).await;
    }
    assert!(!base::remove(&base).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_share_the_blocks_of_one_and_none_sees_what_another_writes() {
    let lab = lab().await;
    let disk = lab.sandbox.path().join("disk");
    if let Err(why) = lab.sandbox.mount_xfs(&disk, 2048) {
        println!("not run: {why}");
        return;
    }
    let base = disk.join("base");
    let copy = |name: &str| lab.folder(&disk, name);
    let [first, second, third, plain] = ["first", "second", "third", "plain"].map(copy);
    let before = used_bytes(&disk);
    assert_eq!(lab.restore(&first, &base, &lab.part).await.unwrap(), Files::WrittenWithBase);
    let one = used_bytes(&disk);
    let there = base::look(&base).unwrap().unwrap();
    assert_eq!((&there.label, there.system_id), (&lab.part.label, lab.id));
    assert_eq!(fs::metadata(&base).unwrap().mode() & 0o777, 0o700);
    assert!(!base.join("data/global/pg_control").exists() && !base.join("data/backup_label").exists());
    assert!(one - before >= there.bytes, "{before} {one} {there:?}");
    assert!(one - before < there.bytes * 2, "a base takes no room of its own: {before} {one} {there:?}");

    assert_eq!(lab.restore(&second, &base, &lab.part).await.unwrap(), Files::Shared);
    let two = used_bytes(&disk);
    // log is brought to each
    assert!(two - one < there.bytes / 2, "{one} {two} {there:?}");
    let options = millrace_backup::RestoreOptions {
        backup: Some(lab.part.label.clone()),
        ..restore_options(&plain, Target::Latest)
    };
    let repo = &lab.kept.repo;
    let without = restore(repo, lab.id, &options, &*quiet(), &CancellationToken::new()).await.unwrap();
    assert_eq!(without.files, Files::Written);
    let whole = tree(&plain.data_dir());
    assert!(whole.len() > 900, "{}", whole.len());
    for of in [&first, &second] {
        assert!(tree(&of.data_dir()) == whole, "{} is not as without a base", of.folder.display());
    }
    let untouched = tree(&base);
    for of in [&first, &second] {
        lab.live(of).await;
    }
    assert!(tree(&base) == untouched, "the base was written to");
    assert_eq!(lab.restore(&third, &base, &lab.part).await.unwrap(), Files::Shared);
    assert!(tree(&third.data_dir()) == whole);

    // another backup's takes its place, and back
    for (name, backup) in [("older", &lab.full), ("newer", &lab.part)] {
        assert_eq!(lab.restore(&copy(name), &base, backup).await.unwrap(), Files::WrittenWithBase, "{name}");
        assert_eq!(base::look(&base).unwrap().unwrap().label, backup.label);
    }
    assert!(base::remove(&base).unwrap());
    assert_eq!(base::look(&base).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_not_whole_is_not_used_and_made_anew() {
    let lab = lab().await;
    let disk = lab.sandbox.path().join("disk");
    if let Err(why) = lab.sandbox.mount_xfs(&disk, 2048) {
        println!("not run: {why}");
        return;
    }
    let base = disk.join("base");
    let spec = lab.folder(&disk, "copy");
    let again = async |what: &str, expected: Files| {
        if spec.data_dir().exists() {
            fs::remove_dir_all(spec.data_dir()).unwrap();
        }
        assert_eq!(lab.restore(&spec, &base, &lab.part).await.unwrap(), expected, "{what}");
        tree(&spec.data_dir())
    };
    let whole = again("first", Files::WrittenWithBase).await;
    let (data, mark) = (base.join("data"), base.join("base.json"));
    let large = walk(&data).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let there = base::look(&base).unwrap().unwrap();
    let open = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap();
    let damages: [(&str, &dyn Fn()); 9] = [
        ("cut short", &|| open(&large).set_len(8192).unwrap()),
        ("changed", &|| std::os::unix::fs::FileExt::write_all_at(&open(&large), b"x", 5).unwrap()),
        ("a file is gone", &|| fs::remove_file(&large).unwrap()),
        ("a file too many", &|| fs::write(data.join("global/pg_control"), "x").unwrap()),
        ("half removed", &|| fs::remove_dir_all(data.join("base")).unwrap()),
        ("no mark", &|| fs::remove_file(&mark).unwrap()),
        ("a mark that is cut short", &|| open(&mark).set_len(30).unwrap()),
        ("another label", &|| {
            fs::write(&mark, marked(&base::Base { label: lab.full.label.clone(), ..there.clone() })).unwrap();
        }),
        ("another cluster", &|| {
            fs::write(&mark, marked(&base::Base { system_id: 1, ..there.clone() })).unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        assert!(again(what, Files::WrittenWithBase).await == whole, "{what}");
        assert!(again(what, Files::Shared).await == whole, "{what}, made anew");
    }
    // a mark that was written again, but of this very content, is one
    fs::write(&mark, marked(&there)).unwrap();
    again("the same mark", Files::Shared).await;

    // what a killed restore has left goes, whether the base is used or not
    for expected in [Files::Shared, Files::WrittenWithBase] {
        fs::create_dir_all(disk.join("base.new/data/base")).unwrap();
        fs::write(disk.join("base.new/data/base/1"), "x").unwrap();
        if expected == Files::WrittenWithBase {
            assert!(base::remove(&base).unwrap());
            fs::create_dir_all(disk.join("base.new")).unwrap();
        }
        again("leftovers", expected).await;
        assert_eq!(names(&disk), ["base", "base.lock", "copy"]);
    }

    // others take from it meanwhile: so can this one, but nobody changes it
    let lock = fs::File::open(disk.join("base.lock")).unwrap();
    lock.lock_shared().unwrap();
    again("with others", Files::Shared).await;
    fs::remove_dir_all(spec.data_dir()).unwrap();
    assert_eq!(lab.restore(&spec, &base, &lab.full).await.unwrap(), Files::Written);
    assert!(matches!(base::remove(&base), Err(BackupError::BaseInUse(_))));
    lock.unlock().unwrap();
    // one is made or removed just now
    lock.lock().unwrap();
    again("beside one that makes it", Files::Written).await;
    lock.unlock().unwrap();
    again("after that", Files::Shared).await;

    // no room for all of it again
    fs::remove_dir_all(spec.data_dir()).unwrap();
    let free = rustix::fs::statvfs(&disk).unwrap();
    let spare = there.bytes * 3 / 4;
    let filler = fs::File::create(disk.join("filler")).unwrap();
    let fill = free.f_bavail * free.f_frsize - spare;
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, fill).unwrap();
    again("without room", Files::Shared).await;
    fs::remove_dir_all(spec.data_dir()).unwrap();
    // another backup needs it: the base is given up, which is enough here
    filler.set_len(fill - (there.bytes >> 3)).unwrap();
    assert_eq!(lab.restore(&spec, &base, &lab.full).await.unwrap(), Files::WrittenWithBase);
    assert_eq!(base::look(&base).unwrap().unwrap().label, lab.full.label);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_leaves_one_and_takes_nothing_from_it() {
    let lab = lab().await;
    let disk = lab.sandbox.path().join("disk");
    if let Err(why) = lab.sandbox.mount_xfs(&disk, 2048) {
        println!("not run: {why}");
        return;
    }
    let base = disk.join("base");
    let options = lab.prove_options(disk.join("proof"), &base);
    let proven = async || prove(&lab.kept.repo, lab.id, &options, &*quiet(), &CancellationToken::new()).await;
    proven().await.unwrap();
    assert_eq!(base::look(&base).unwrap().unwrap().label, lab.part.label);
    let spec = lab.folder(&disk, "copy");
    assert_eq!(lab.restore(&spec, &base, &lab.part).await.unwrap(), Files::Shared);
    lab.live(&spec).await;
    assert_eq!(names(&disk), ["base", "base.lock", "copy", "proof.lock"]);

    // it is the repository that is proven
    let pack = walk(&lab.kept.folder).into_iter().find(|path| path.to_string_lossy().contains("pack-00000")).unwrap();
    fs::write(&pack, "x").unwrap();
    let error = proven().await.unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
}
