//! Servers made, started, adopted, copied, stopped; and what goes wrong then.

use std::{fs, time::Duration};

use millrace_base::Secret;
use millrace_pg::{
    ConnectParams, PgError, ServerError, ServerSpec, StopMode, catalog, connect, process::Exit, roles, server::Upstream,
};
use millrace_testkit::{TestServer, free_port, wait_until};

const LONG: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_running_server_is_adopted_and_no_other_process() {
    let mut server = TestServer::start().await;
    let spec = server.spec().clone();
    let pid = server.pid().unwrap();
    assert!(matches!(spec.start().await, Err(ServerError::AlreadyRunning { pid: found, .. }) if found == pid));
    let mut adopted = spec.adopt().unwrap().unwrap();
    assert_eq!((adopted.pid(), adopted.is_adopted()), (pid, true));
    adopted.ready(LONG).await.unwrap();
    assert!(adopted.started_at().is_some());
    assert_eq!(adopted.stop(StopMode::Fast, LONG).await.unwrap(), Exit::Unknown);
    server.kill().await;

    // a pid file that names this test, or a backend of the same server, is not believed
    let file = spec.data_dir().join("postmaster.pid");
    fs::write(&file, format!("{}\n", std::process::id())).unwrap();
    assert_eq!(spec.running_pid(), None);
    server.start_again().await;
    let backend: i32 = server.client().await.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen(&server.pid().unwrap().to_string(), &backend.to_string(), 1)).unwrap();
    assert_eq!(spec.running_pid(), None);
    fs::write(&file, text).unwrap();
    assert_eq!(spec.running_pid(), server.pid());
}

#[tokio::test]
async fn what_a_killed_server_left_is_ended_before_the_next_start() {
    let mut server = TestServer::start().await;
    let busy = server.client().await;
    let spinning = async {
        // never looks whether the server still lives
        busy.batch_execute("DO $$ DECLARE i bigint := 0; BEGIN LOOP i := i + 1; END LOOP; END $$").await
    };
    let restarting = async {
        let other = server.client().await;
        wait_until(LONG, || async {
            let sessions = catalog::sessions(&other).await.unwrap();
            sessions.iter().any(|s| s.statement.as_deref().is_some_and(|text| text.starts_with("DO")))
        })
        .await;
        drop(other);
        server.kill().await;
        server.start_again().await;
        server.client().await;
    };
    let (spun, ()) = tokio::join!(spinning, restarting);
    assert!(PgError::from(spun.unwrap_err()).is_transient());
}

#[tokio::test]
async fn what_is_not_fit_to_start_is_named() {
    let mut server = TestServer::start().await;
    server.stop().await;
    let spec = server.spec().clone();

    let taken = std::net::TcpListener::bind(("127.0.0.1", spec.port)).unwrap();
    let error = spec.start().await.unwrap().ready(LONG).await.unwrap_err();
    assert!(matches!(error, ServerError::PortInUse { .. }), "{error}");
    drop(taken);

    let bad = ServerSpec { settings: vec![millrace_pg::Setting::new("work_mem", "lots", "")], ..spec.clone() };
    bad.configure(None).unwrap();
    let error = bad.start().await.unwrap().ready(LONG).await.unwrap_err();
    assert_eq!(error.to_string(), "a setting was refused: invalid value for parameter \"work_mem\": \"lots\"");
    spec.configure(None).unwrap();

    let version = spec.data_dir().join("PG_VERSION");
    fs::write(&version, "12\n").unwrap();
    let error = spec.start().await.unwrap_err();
    assert!(matches!(&error, ServerError::WrongVersion { found, .. } if found == "12"), "{error}");
    fs::write(&version, format!("{}\n", spec.binaries.major())).unwrap();

    let control = spec.data_dir().join("global/pg_control");
    let bytes = fs::read(&control).unwrap();
    fs::write(&control, "").unwrap();
    let error = spec.start().await.unwrap().ready(LONG).await.unwrap_err();
    assert!(matches!(error, ServerError::Damaged { .. } | ServerError::Ended { .. }), "{error}");
    fs::write(&control, bytes).unwrap();

    if spec.run_as.name() == "postgres" {
        let owner = |name: &str| {
            let done = std::process::Command::new("chown").arg(name).arg(spec.data_dir()).status().unwrap();
            assert!(done.success());
        };
        owner("root");
        let error = spec.start().await.unwrap_err();
        assert!(
            error.to_string().ends_with("belongs to root, not to \"postgres\", as which the servers run"),
            "{error}"
        );
        owner("postgres");
    }
    server.start_again().await;
}

#[tokio::test]
async fn stop_is_orderly_or_at_once() {
    let mut server = TestServer::start().await;
    let spec = server.spec().clone();
    server.stop().await;
    let mut postmaster = spec.start().await.unwrap();
    postmaster.ready(LONG).await.unwrap();
    assert_eq!(postmaster.stop(StopMode::Fast, LONG).await.unwrap(), Exit::Code(0));
    assert!(millrace_pg::control_file::read(&spec.data_dir()).unwrap().shut_down);
    let mut postmaster = spec.start().await.unwrap();
    postmaster.ready(LONG).await.unwrap();
    postmaster.kill();
    assert_eq!(postmaster.exited().await, Exit::Signal(9));
    assert!(!postmaster.is_running());
    assert!(!millrace_pg::control_file::read(&spec.data_dir()).unwrap().shut_down);
}

#[tokio::test]
async fn a_replica_is_copied_streams_and_is_promoted() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let password = Secret::generate();
    roles::ensure_login_role(&*client, "replicator", "REPLICATION", &password).await.unwrap();
    catalog::create_physical_slot(&client, "copy").await.unwrap();
    let upstream = Upstream {
        host: "127.0.0.1".into(),
        port: server.port(),
        user: "replicator".into(),
        password: password.clone(),
        slot: "copy".into(),
        application_name: "copy".into(),
    };
    let spec = ServerSpec {
        folder: server.folder().join("copy"),
        log_file: server.folder().join("copy.log"),
        port: free_port(),
        ..server.spec().clone()
    };

    let wrong = Upstream { password: Secret::new("guess"), ..upstream.clone() };
    let error = spec.base_backup(&wrong, LONG).await.unwrap_err();
    assert!(error.to_string().contains("password authentication failed"), "{error}");
    assert!(!spec.incoming_dir().exists() && !spec.data_dir().exists());
    // left by an earlier supervisor that was killed
    fs::create_dir(spec.incoming_dir()).unwrap();
    fs::write(spec.incoming_dir().join("PG_VERSION"), "15").unwrap();

    spec.base_backup(&upstream, LONG).await.unwrap();
    let mut postmaster = spec.start().await.unwrap();
    postmaster.ready(LONG).await.unwrap();
    let replica = connect(&ConnectParams { port: spec.port, ..server.params() }, LONG).await.unwrap();
    wait_until(LONG, || async { catalog::server_state(&replica).await.unwrap().streaming }).await;
    let standbys = catalog::standbys(&client).await.unwrap();
    assert_eq!(standbys[0].application_name, "copy");
    assert!(catalog::server_state(&replica).await.unwrap().in_recovery);

    // no secret is where another user could see it
    for pid in [postmaster.pid(), server.pid().unwrap()] {
        for file in ["cmdline", "environ"] {
            let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned();
            assert!(!text.contains(password.reveal()), "{file} of {pid}: {text}");
        }
    }
    let conf = fs::read_to_string(spec.data_dir().join("millrace.conf")).unwrap();
    assert!(!conf.contains(password.reveal()) && conf.contains("sslmode=verify-full"), "{conf}");

    assert!(catalog::promote(&replica, LONG).await.unwrap());
    let state = catalog::server_state(&replica).await.unwrap();
    assert_eq!((state.in_recovery, state.timeline), (false, 2));
    postmaster.stop(StopMode::Fast, LONG).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_named() {
    let mut server = TestServer::start().await;
    let small = server.folder().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs"])
        .arg(&small)
        .status()
        .unwrap();
    if !mounted.success() {
        // not root: the words are still tested in `diagnose`
        return;
    }
    let spec = ServerSpec { folder: small.join("node"), ..server.spec().clone() };
    let error = spec.initdb(&Secret::generate()).await.unwrap_err();
    let unmounted = std::process::Command::new("umount").arg("-l").arg(&small).status().unwrap();
    assert!(unmounted.success());
    assert!(matches!(error, ServerError::DiskFull { .. }), "{error}");
    assert!(error.to_string().starts_with("no space is left on the disk of"), "{error}");
    server.stop().await;
}
