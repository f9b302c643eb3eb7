//! Disks that take nothing for a while, or are full: each node has a file system of its own.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use millrace_cluster::{
    ClusterSpec, ClusterStatus,
    history::{self, Event},
};
use millrace_pg::Connection;
use millrace_testkit::Sandbox;

use crate::{
    agents::Agents,
    harness::{Cluster, LONG, spec_in},
};

/// One that is frozen wakes up after this whatever becomes of the test: who waits for it cannot even be killed.
const THAW_AFTER: &str = "100";

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {}", said.trim())) }
}

/// Gives each node a file system, which goes away with the sandbox. Whether that was possible.
fn mount(sandbox: &Sandbox, spec: &ClusterSpec, megabytes: u64) -> bool {
    for node in &spec.nodes {
        let image = sandbox.path().join(format!("{}.img", node.name));
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        fs::create_dir(&node.folder).unwrap();
        let (image, folder) = (image.to_str().unwrap(), node.folder.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image]).unwrap();
        if let Err(why) = run("mount", &["-o", "loop", image, folder]) {
            println!("not run: only root may mount file systems, where the machine can: {why}");
            return false;
        }
        spec.run_as.own(&node.folder).unwrap();
    }
    true
}

/// A disk takes nothing as long as this is there.
struct Frozen<'a> {
    folder: &'a Path,
    waker: Child,
}

impl<'a> Frozen<'a> {
    fn new(folder: &'a Path) -> Self {
        let wake = format!("sleep {THAW_AFTER}; fsfreeze --unfreeze '{}'", folder.display());
        let mut waker = Command::new("sh");
        waker.args(["-c", &wake]).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let waker = waker.spawn().unwrap();
        run("fsfreeze", &["--freeze", folder.to_str().unwrap()]).unwrap();
        Self { folder, waker }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(why) = run("fsfreeze", &["--unfreeze", self.folder.to_str().unwrap()]) {
            println!("{why}");
        }
        // with the program that it waits for
        run("kill", &["--", &format!("-{}", self.waker.id())]).ok();
        self.waker.wait().ok();
    }
}

/// A cluster whose commits are on a quorum, with a table to write to. `None`: this machine cannot have it.
async fn on_disks(megabytes: u64) -> Option<Cluster> {
    let sandbox = Sandbox::new();
    let spec = spec_in(sandbox.path(), &["a", "b", "c"]);
    if !mount(&sandbox, &spec, megabytes) {
        return None;
    }
    let mut cluster = Cluster::supervised(sandbox, spec);
    cluster.ready().await;
    cluster.until("a promise", |status| status.promise.members.len() == 2).await;
    cluster.client("a").await.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    Some(cluster)
}

async fn another_primary(cluster: &mut Cluster) -> String {
    cluster.until("another primary", |status| status.primary_ready && status.primary.as_deref() != Some("a")).await;
    let primary = cluster.status.borrow().primary.clone();
    primary.unwrap()
}

async fn count(client: &Connection) -> i64 {
    client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
}

/// Writes rows one by one until one fails, or for ever.
async fn write(client: &Connection, acknowledged: &AtomicI64) {
    while client.batch_execute("INSERT INTO t VALUES (1)").await.is_ok() {
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

async fn pass(time: Duration) {
    tokio::time::timeout(time, std::future::pending::<()>()).await.unwrap_err();
}

fn says(status: &ClusterStatus, name: &str, what: &str) -> bool {
    status.nodes.iter().any(|node| node.name == name && node.doing.contains(what))
}

fn elections(spec: &ClusterSpec) -> Vec<String> {
    let why = |event| match event {
        Event::Elected { why, .. } => Some(why),
        _ => None,
    };
    history::read(&spec.state_dir).unwrap().into_iter().filter_map(|entry| why(entry.event)).collect()
}

// freezing waits for the disk, and the supervisor is not to wait with it
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_whose_disk_takes_nothing_is_replaced_and_comes_back() {
    let Some(mut cluster) = on_disks(600).await else { return };
    let (folder, pid) = (cluster.folder("a"), cluster.node("a").pid);
    let (client, acknowledged) = (cluster.client("a").await, AtomicI64::new(0));

    // for a moment, now and then: nothing changes
    let hiccups = async {
        for _ in 0..3 {
            let frozen = Frozen::new(&folder);
            pass(Duration::from_secs(1)).await;
            drop(frozen);
            pass(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = write(&client, &acknowledged) => panic!("a write failed"),
        () = hiccups => {}
    }
    assert_eq!((cluster.node("a").pid, elections(&cluster.spec)), (pid, Vec::new()));

    let (frozen, hung) = (Frozen::new(&folder), Instant::now());
    let new = tokio::select! {
        () = write(&client, &acknowledged) => panic!("a write failed whose outcome is not known"),
        new = another_primary(&mut cluster) => new,
    };
    let took = hung.elapsed();
    println!("{new} was ready {took:?} after the disk hung");
    assert!(took < Duration::from_secs(20), "{new} was ready after {took:?}");
    let of_new = cluster.client(&new).await;
    let (found, acknowledged) = (count(&of_new).await, acknowledged.load(Ordering::SeqCst));
    assert!(acknowledged > 0 && found >= acknowledged, "{acknowledged} acknowledged, {found} found");
    let why = elections(&cluster.spec);
    assert!(why.len() == 1 && why[0].starts_with("its disk has taken nothing for "), "{why:?}");
    cluster.until("a word on the disk", |status| says(status, "a", "its disk has taken nothing for ")).await;
    // others are served, and looked after, while it hangs
    of_new.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster
        .until("the third to follow", |status| {
            status.nodes.iter().filter(|node| node.streaming == Some(true)).count() == 1
        })
        .await;

    drop(frozen);
    cluster.ready().await;
    assert_eq!(cluster.status.borrow().primary.as_deref(), Some(new.as_str()));
    cluster
        .until("the old one to have it all", |status| {
            status.nodes.iter().all(|n| n.name == new || n.lag_bytes == Some(0))
        })
        .await;
    assert_eq!(count(&cluster.client("a").await).await, count(&of_new).await);
    let kept_aside =
        fs::read_dir(&folder).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().contains("aside"));
    assert!(!kept_aside, "it is rewound, not made anew");
    let away = |entry: history::Entry| match entry.event {
        Event::Promoted { away_ms, .. } => away_ms,
        _ => None,
    };
    let away_ms: Vec<u64> = history::read(&cluster.spec.state_dir).unwrap().into_iter().filter_map(away).collect();
    let silent_ms = u64::try_from(cluster.spec.limits.silent_max.as_millis()).unwrap();
    assert!(away_ms.len() == 1 && away_ms[0] >= silent_ms, "{away_ms:?}");
    cluster.stop().await;
}

/// Its processes cannot end, and nobody waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_is_stopped_while_a_disk_takes_nothing() {
    let Some(mut cluster) = on_disks(600).await else { return };
    let folder = cluster.folder("a");
    let frozen = Frozen::new(&folder);
    another_primary(&mut cluster).await;
    let begun = Instant::now();
    cluster.stop().await;
    println!("stopped after {:?}", begun.elapsed());
    drop(frozen);
    cluster.supervise();
    cluster.ready().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_primary_whose_disk_is_full_is_replaced_and_comes_back_when_there_is_room() {
    with_a_full_disk(true).await;
}

/// The third has got the first part of a record that the new primary never completes.
#[tokio::test]
async fn after_a_full_disk_all_follow_a_primary_that_writes_nothing() {
    with_a_full_disk(false).await;
}

async fn with_a_full_disk(writes: bool) {
    let Some(mut cluster) = on_disks(600).await else { return };
    let folder = cluster.folder("a");
    let (client, mut acknowledged) = (cluster.client("a").await, 1);
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let filler = folder.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let full = std::io::copy(&mut std::io::repeat(0), &mut file).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(file);
    cluster.until("a word on the disk", |status| says(status, "a", "its disk is full")).await;
    assert_eq!(elections(&cluster.spec), [] as [String; 0], "what it has it can use");

    let filled = Instant::now();
    // the log grows, and no table
    let message =
        "INSERT INTO t VALUES (1); SELECT pg_logical_emit_message(true, '', repeat(md5(random()::text), 30000))";
    while client.batch_execute(message).await.is_ok() {
        acknowledged += 1;
    }
    let ended = Instant::now();
    let new = another_primary(&mut cluster).await;
    println!("{new} was ready {:?} after the server failed, which took {:?}", ended.elapsed(), ended - filled);
    let of_new = cluster.client(&new).await;
    let found = count(&of_new).await;
    assert!((acknowledged..=acknowledged + 1).contains(&found), "{acknowledged} acknowledged, {found} found");
    cluster.until("a word on the disk", |status| says(status, "a", "once there is room; its disk is full")).await;
    println!("{}: {:?}", cluster.node("a").doing, elections(&cluster.spec));
    for _ in 0..if writes { 30 } else { 0 } {
        of_new.batch_execute(message).await.unwrap();
    }

    fs::remove_file(&filler).unwrap();
    cluster.ready().await;
    assert_eq!(cluster.status.borrow().primary.as_deref(), Some(new.as_str()));
    assert_eq!(count(&cluster.client("a").await).await, count(&of_new).await);
    cluster.stop().await;
}

/// The agent's own files are on that disk too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_agent_whose_disk_takes_nothing_leaves_its_place_to_others() {
    let mut agents = Agents::at_rest(&["a", "b", "c"]);
    if !mount(&agents.sandbox, &agents.spec, 600) {
        return;
    }
    let folder = agents.sandbox.path().join("a");
    fs::create_dir(folder.join("state")).unwrap();
    std::os::unix::fs::symlink(folder.join("state"), agents.sandbox.path().join("a.state")).unwrap();
    for name in ["a", "b", "c"] {
        agents.supervise(name);
    }
    agents.ready().await;
    assert_eq!(agents.primary(), "a");
    let (client, acknowledged) = (agents.client("a").await, AtomicI64::new(0));
    client.batch_execute("CREATE TABLE t (i int)").await.unwrap();

    let hung = tokio::select! {
        () = write(&client, &acknowledged) => panic!("a write failed"),
        () = pass(Duration::from_millis(300)) => Instant::now(),
    };
    let frozen = Frozen::new(&folder);
    let new = tokio::select! {
        () = write(&client, &acknowledged) => panic!("a write failed whose outcome is not known"),
        new = agents.another_primary_by("a", "b") => new,
    };
    let took = hung.elapsed();
    println!("{new} was ready {took:?} after the disk hung");
    assert!(took < Duration::from_secs(20), "{new} was ready after {took:?}");
    let of_new = agents.client(&new).await;
    let (found, acknowledged) = (count(&of_new).await, acknowledged.load(Ordering::SeqCst));
    assert!(acknowledged > 0 && found >= acknowledged, "{acknowledged} acknowledged, {found} found");
    of_new.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();

    drop(frozen);
    tokio::time::timeout(LONG, agents.ready()).await.unwrap();
    assert_eq!(agents.primary(), new);
    assert_eq!(count(&agents.client("a").await).await, count(&of_new).await);
    agents.stop().await;
}
