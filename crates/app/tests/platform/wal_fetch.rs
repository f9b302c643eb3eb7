//! `millrace wal fetch` as the `restore_command` of servers that the platform does not run.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use millrace_backup::{
    CreateOptions, Kind, RestoreOptions, WalSource, create,
    plan::Target,
    repo::{Location, Repository},
    restore,
    seal::{Encryption, Keys, Sealing},
    wal::{self, ReceiveOptions, ReceiveStatus, Spool},
};
use millrace_base::{Lsn, Secret, Tasks};
use millrace_pg::{ConnectParams, Connection, ServerSpec, connect};
use millrace_testkit::{Sandbox, TestServer, free_port, wait_until};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backup::with_backups,
    harness::{Platform, Said, command, kill, run_command},
};

const SOON: Duration = Duration::from_secs(60);
const SEGMENT: u64 = 16 << 20;

/// A backup of a server and the log after it, and a platform that knows the repository and nothing else.
struct Archived {
    server: TestServer,
    platform: Platform,
    repo: Repository,
    id: u64,
    /// Complete segments after the backup, in order.
    segments: Vec<String>,
    rows: i64,
}

async fn number(client: &Connection, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn text(client: &Connection, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

impl Archived {
    /// With so many complete segments.
    async fn make(segments: i64) -> Self {
        let platform = Platform::init();
        with_backups(&platform);
        let secrets = fs::read_to_string(platform.dir().join("secrets.toml")).unwrap();
        let mut words = secrets.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let key = Secret::new(words.find(|word| word.starts_with("AGE-SECRET-KEY-")).unwrap());
        let public = Keys::public(&key).unwrap();
        let sealing = Sealing::new(Encryption::to(public.iter().map(String::as_str)).unwrap());
        let folder = Location::Folder(platform.dir().join("backups"));
        let repo = Repository::open(&folder, sealing, Keys::parse(&key).unwrap()).unwrap();

        let server = TestServer::start().await;
        let client = server.create_database("app").await;
        client.batch_execute("CREATE TABLE t (n bigint)").await.unwrap();
        let id = number(&client, "SELECT system_identifier FROM pg_control_system()").await.cast_unsigned();
        let mut tasks = Tasks::new(CancellationToken::new());
        let (tell, mut status) = watch::channel(ReceiveStatus::default());
        let receive = ReceiveOptions {
            params: server.params(),
            slot: "archive".to_owned(),
            flush_every: Duration::from_millis(500),
            uploads_max: 2,
        };
        let (into, stop) = (repo.clone(), tasks.token().clone());
        tasks.spawn("receiver", async move { wal::receive(&into, &receive, &tell, &stop).await });
        let options = CreateOptions {
            params: server.params(),
            primary: None,
            data_dir: server.data_dir(),
            kind: Kind::Full,
            threads: 2,
            bytes_per_second_max: None,
            fast_checkpoint: true,
            wal_wait: Some(SOON),
        };
        create(&repo, &options, &|_| {}, &CancellationToken::new()).await.unwrap();
        let mut names = Vec::new();
        for n in 0..segments {
            client.execute("INSERT INTO t VALUES ($1)", &[&n]).await.unwrap();
            names.push(text(&client, "SELECT pg_walfile_name(pg_switch_wal())").await);
        }
        // this one stands in a segment that is never finished
        client.execute("INSERT INTO t VALUES ($1)", &[&segments]).await.unwrap();
        let end: Lsn = text(&client, "SELECT pg_current_wal_flush_lsn()::text").await.parse().unwrap();
        tokio::time::timeout(SOON, status.wait_for(|status| status.durable >= end)).await.unwrap().unwrap();
        assert!(tasks.shutdown(SOON).await.is_empty());
        Self { server, platform, repo, id, segments: names, rows: segments + 1 }
    }

    /// `millrace wal fetch` in the server's data directory.
    fn fetch(&self, arguments: &[&str]) -> std::process::Command {
        let dir = self.platform.dir();
        let mut all = command(&["--dir", dir.to_str().unwrap(), "--json", "wal", "fetch"]);
        all.args(arguments).current_dir(self.server.data_dir());
        all
    }

    fn fetched(&self, arguments: &[&str]) -> Said {
        run_command(&mut self.fetch(arguments))
    }

    /// The process that a fetch starts, by hand.
    fn fill(&self, spool: &Path, name: &str, ahead: &str) -> std::process::Command {
        let (spool, id) = (spool.to_str().unwrap(), self.id.to_string());
        self.fetch(&["--background", "--spool", spool, "--system-id", &id, "--ahead", ahead, name, "unused"])
    }

    /// What a segment holds, straight from the repository.
    async fn content(&self, name: &str) -> Vec<u8> {
        let to = self.platform.dir().join("straight");
        wal::fetch(&self.repo, self.id, name, &to).await.unwrap();
        fs::read(to).unwrap()
    }

    /// The object of a complete segment.
    fn object(&self, name: &str) -> PathBuf {
        let folder = self.platform.dir().join(format!("backups/{}/wal/{}", self.id, name.get(..8).unwrap()));
        let is = |path: &PathBuf| path.is_file() && path.file_name().unwrap().to_str().unwrap().starts_with(name);
        fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).find(is).unwrap()
    }
}

/// Whether nothing is at it and exactly these wait.
fn rests_with(spool: &Path, id: u64, names: &[String]) -> bool {
    !Spool::new(spool, id).is_filling() && waiting(spool, id) == names.iter().cloned().collect()
}

/// Whole segments that wait in the spool.
fn waiting(spool: &Path, id: u64) -> BTreeSet<String> {
    let names = fs::read_dir(spool.join(id.to_string())).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.len() == 24).collect()
}

fn is_being_brought(spool: &Path, id: u64) -> bool {
    let mut names = fs::read_dir(spool.join(id.to_string())).into_iter().flatten().flatten();
    names.any(|entry| entry.file_name().to_str().unwrap().ends_with(".fetching"))
}

fn from(said: Said) -> String {
    said.json()["from"].as_str().unwrap().to_owned()
}

/// A copy of the server that gets its log by a command, and writes what that says into a file.
async fn recover(archived: &Archived, options: &str) -> (Sandbox, ServerSpec, Vec<String>, i64) {
    let sandbox = Sandbox::new();
    let own = &archived.server.spec().run_as;
    let program = env!("CARGO_BIN_EXE_millrace");
    // the server's user runs it, and reads the platform's files
    own.check_reachable(Path::new(program)).unwrap();
    for entry in walkdir::WalkDir::new(archived.platform.dir()) {
        own.own(entry.unwrap().path()).unwrap();
    }
    let folder = sandbox.path().join("server");
    fs::create_dir(&folder).unwrap();
    own.own(&folder).unwrap();
    let log_file = sandbox.path().join("server.log");
    let spec = ServerSpec { folder, log_file, port: free_port(), ..archived.server.spec().clone() };
    let said = sandbox.path().join("said");
    fs::write(&said, "").unwrap();
    own.own(&said).unwrap();
    let dir = archived.platform.dir();
    let command =
        format!("\"{program}\" --dir \"{}\" --json wal fetch {options} %f %p >> \"{}\"", dir.display(), said.display());
    let options = RestoreOptions {
        data_dir: spec.data_dir(),
        delta: false,
        base: None,
        target: Target::Latest,
        backup: None,
        timeline: None,
        threads: 2,
        owner: Some(own.clone()),
        tablespaces: Default::default(),
        wal: WalSource::Command(command),
    };
    restore(&archived.repo, archived.id, &options, &|_| {}, &CancellationToken::new()).await.unwrap();
    spec.configure(None).unwrap();
    let mut postmaster = spec.start().await.unwrap();
    if let Err(error) = postmaster.ready(SOON).await {
        panic!("{error}\n{}", fs::read_to_string(&spec.log_file).unwrap_or_default());
    }
    let params = ConnectParams { port: spec.port, ..archived.server.params().to_database("app") };
    let client = connect(&params, SOON).await.unwrap();
    wait_until(SOON, || async {
        !client.query_one("SELECT pg_is_in_recovery()", &[]).await.unwrap().get::<_, bool>(0)
    })
    .await;
    assert_eq!(text(&client, "SELECT pg_walfile_name(pg_current_wal_lsn())").await.get(..8), Some("00000002"));
    let complete = "SELECT CASE WHEN sum(n) = count(*) * (count(*) - 1) / 2 THEN count(*) ELSE -1 END FROM t";
    let rows = number(&client, complete).await;
    drop(client);
    drop(postmaster);
    let said = fs::read_to_string(said).unwrap();
    let said =
        said.lines().filter_map(|line| line.trim().strip_prefix("\"from\": \"")).map(|from| from.replace('"', ""));
    let said = said.collect();
    (sandbox, spec, said, rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_recovers_by_it_and_finds_most_files_waiting() {
    let archived = Archived::make(40).await;
    let (_sandbox, spec, said, rows) = recover(&archived, "").await;
    assert_eq!(rows, archived.rows);
    let spooled = said.iter().filter(|from| *from == "spool").count();
    assert!(said.len() >= 41 && spooled >= 10, "{spooled} of {}", said.len());
    let spool = spec.data_dir().join("pg_wal/millrace-fetched");
    wait_until(SOON, || async { !is_being_brought(&spool, archived.id) }).await;
    // what the server has passed went, and what was put together from parts never came
    let left = waiting(&spool, archived.id);
    assert!(left.len() <= 8 && left.iter().all(|name| *name <= archived.segments[39]), "{left:?}");

    let (_sandbox, spec, said, rows) = recover(&archived, "--ahead 0").await;
    assert_eq!(rows, archived.rows);
    assert!(said.len() >= 41 && said.iter().all(|from| from == "repository"), "{said:?}");
    assert!(!spec.data_dir().join("pg_wal/millrace-fetched").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_is_what_the_repository_has() {
    let archived = Archived::make(24).await;
    let names = &archived.segments;
    let place = tempfile::tempdir().unwrap();
    let (spool, to) = (place.path().join("spool"), place.path().join("to"));
    let (spool_name, to_name) = (spool.to_str().unwrap(), to.to_str().unwrap());
    let fetch = |name: &str| archived.fetched(&["--spool", spool_name, name, to_name]);
    let id = archived.id;

    // one by one, the first from the repository
    assert_eq!(from(fetch(&names[0])), "repository");
    wait_until(SOON, || async { rests_with(&spool, id, &names[1..9]) }).await;
    for name in &names[1..5] {
        assert_eq!(from(fetch(name)), "spool");
        assert_eq!(fs::read(&to).unwrap(), archived.content(name).await, "{name}");
        assert!(!waiting(&spool, id).contains(name), "it was moved");
    }
    // four are half: no more are brought before the next one is asked for
    assert_eq!(waiting(&spool, id), names[5..9].iter().cloned().collect());
    assert_eq!(from(fetch(&names[5])), "spool");
    wait_until(SOON, || async { rests_with(&spool, id, &names[6..14]) }).await;

    // back: it is fetched, and what waits is for what follows it
    assert_eq!(from(fetch(&names[2])), "repository");
    wait_until(SOON, || async { rests_with(&spool, id, &names[3..11]) }).await;

    // of another cluster
    let of_another = spool.join("12345");
    fs::create_dir_all(&of_another).unwrap();
    fs::write(of_another.join(&names[20]), "another's").unwrap();
    assert_eq!(from(fetch(&names[20])), "repository");
    assert_eq!(fs::read(&to).unwrap(), archived.content(&names[20]).await);
    assert!(of_another.join(&names[20]).exists());

    // what is not there ends a recovery, and leaves what was there
    let before = fs::read(&to).unwrap();
    for absent in ["0000000100000000000000F0", "00000002.history", "000000020000000000000001", "nonsense"] {
        fetch(absent).failed(1, &format!("does not have {absent}"));
    }
    assert_eq!(fs::read(&to).unwrap(), before);
    archived.fetched(&["--ahead", "1025", &names[0], to_name]).failed(2, "1025 is not in 0..=1024");

    // a spool that cannot be made is no reason to go without the file
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let said = archived.fetched(&["--spool", file.join("x").to_str().unwrap(), &names[3], to_name]);
    assert!(said.stderr.contains("nothing is brought beforehand"), "{said:?}");
    assert_eq!(from(said), "repository");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_killed_processes_and_two_at_once() {
    let archived = Archived::make(40).await;
    let names = &archived.segments;
    let place = tempfile::tempdir().unwrap();
    let (spool, to) = (place.path().join("spool"), place.path().join("to"));
    let (spool_name, to_name) = (spool.to_str().unwrap(), to.to_str().unwrap());
    let id = archived.id;

    // killed in the midst of it: what is there is whole, and nothing is left that would stop another
    let mut process =
        archived.fill(&spool, &names[0], "39").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until(SOON, || async { waiting(&spool, id).len() >= 3 }).await;
    kill(process.id(), "STOP");
    // a second one leaves it to the first
    run_command(&mut archived.fill(&spool, &names[0], "39")).ok();
    // what it is at for too long is fetched beside it
    let unfinished = spool.join(format!("{id}/{}.fetching", names[39]));
    fs::write(&unfinished, "half").unwrap();
    let fetch_last = || archived.fetched(&["--spool", spool_name, "--ahead", "1", &names[39], to_name]);
    assert_eq!(from(fetch_last()), "repository");
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(9), "it was too quick to be killed");
    let there = waiting(&spool, id);
    assert!((3..39).contains(&there.len()), "{there:?}");
    for name in &there {
        assert_eq!(fs::read(spool.join(format!("{id}/{name}"))).unwrap(), archived.content(name).await, "{name}");
    }
    // what it was at is not waited for
    assert!(unfinished.exists());
    let begun = Instant::now();
    assert_eq!(from(fetch_last()), "repository");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(fs::read(&to).unwrap(), archived.content(&names[39]).await);
    run_command(&mut archived.fill(&spool, &names[1], "38")).ok();
    assert_eq!(waiting(&spool, id), names[2..].iter().cloned().collect());
    assert!(!is_being_brought(&spool, id));

    // two at once of each, and a third for the next: each gets all of it
    fs::remove_dir_all(&spool).unwrap();
    for pair in names[..20].chunks(2) {
        let begin = |name: &str, number: usize| -> (Child, PathBuf) {
            let to = place.path().join(format!("to-{number}"));
            let mut command = archived.fetch(&["--spool", spool_name, name, to.to_str().unwrap()]);
            (command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(), to)
        };
        let all = [(&pair[0], 0), (&pair[0], 1), (&pair[1], 2)];
        for ((name, _), (mut child, to)) in all.map(|of| (of, begin(of.0, of.1))) {
            assert!(child.wait().unwrap().success(), "{name}");
            assert_eq!(fs::read(&to).unwrap(), archived.content(name).await, "{name}");
        }
    }
    wait_until(SOON, || async { !is_being_brought(&spool, id) }).await;

    // damaged in the repository: it never waits, and who asks for it is told
    let object = archived.object(&names[32]);
    let mut bytes = fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&object, bytes).unwrap();
    let alone = place.path().join("alone");
    run_command(&mut archived.fill(&alone, &names[30], "8")).failed(1, "is damaged: its checksum is wrong");
    assert!(waiting(&alone, id).contains(&names[31]) && !waiting(&alone, id).contains(&names[32]));
    assert!(!is_being_brought(&alone, id));
    fs::remove_file(&to).unwrap();
    let said = archived.fetched(&["--spool", alone.to_str().unwrap(), &names[32], to_name]);
    said.failed(1, "is damaged: its checksum is wrong");
    assert!(!to.exists());
    assert_eq!(u64::try_from(archived.content(&names[33]).await.len()).unwrap(), SEGMENT);
}
