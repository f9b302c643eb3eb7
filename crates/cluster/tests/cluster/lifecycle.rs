//! Made, adopted, stopped.

use millrace_base::Secret;
use millrace_contract::status::NodeState;
use millrace_pg::{ConnectParams, HbaDatabase, HbaRule, HbaSource, connect, roles};
use millrace_testkit::{Sandbox, wait_until};

use crate::harness::{Cluster, LONG, is_running, spec_in};

#[tokio::test]
async fn a_cluster_is_made_and_stopped_in_order() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    cluster.replicates(1).await;

    let replica = cluster.client("b").await;
    let refused = replica.batch_execute("CREATE TABLE no (i int)").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "25006");

    let primary = cluster.client("a").await;
    let standbys = millrace_pg::catalog::standbys(&primary).await.unwrap();
    let names: Vec<_> = standbys.iter().map(|s| (s.application_name.as_str(), s.state.as_str())).collect();
    assert_eq!(names, [("b", "streaming"), ("c", "streaming")]);
    let slots = millrace_pg::catalog::slots(&primary).await.unwrap();
    assert!(slots.iter().all(|slot| slot.active && slot.safe_wal_bytes.is_some()), "{slots:?}");
    assert_eq!(slots.len(), 2);
    for (setting, value) in [("data_checksums", "on"), ("wal_level", "logical"), ("ssl", "on"), ("fsync", "on")] {
        let row = primary.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{setting}");
    }
    drop((primary, replica));

    let pids = cluster.pids();
    cluster.stop().await;
    assert!(pids.values().all(|pid| !is_running(*pid)), "{pids:?}");
    for name in ["a", "b", "c"] {
        let log = std::fs::read_to_string(cluster.sandbox.path().join(format!("{name}.log"))).unwrap();
        assert!(log.contains("database system is shut down"), "{name}: {log}");
        assert!(!log.contains("was not properly shut down"), "{name}: {log}");
    }

    // and again, on what is there
    cluster.supervise();
    cluster.ready().await;
    cluster.replicates(2).await;
    cluster.stop().await;
}

#[tokio::test]
async fn servers_of_a_killed_supervisor_are_adopted() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let before = cluster.pids();
    cluster.drop_supervisor();
    assert!(before.values().all(|pid| is_running(*pid)));
    cluster.supervise();
    cluster.ready().await;
    assert_eq!(cluster.pids(), before);
    // adopted servers are watched and stopped as own ones are
    cluster.kill_and_recover("a").await;
    cluster.stop().await;
    assert!(before.values().all(|pid| !is_running(*pid)));
}

#[tokio::test]
async fn an_interrupted_bootstrap_is_finished() {
    let sandbox = Sandbox::new();
    let spec = spec_in(sandbox.path(), &["a", "b"]);
    let mut cluster = Cluster::supervised(sandbox, spec);
    cluster.until("initdb", |status| status.nodes.iter().any(|n| n.state == NodeState::Starting)).await;
    cluster.drop_supervisor();
    cluster.supervise();
    let incoming = cluster.folder("b").join("data.incoming");
    wait_until(LONG, || async { incoming.exists() }).await;
    cluster.drop_supervisor();
    cluster.supervise();
    cluster.ready().await;
    cluster.replicates(1).await;
    cluster.stop().await;
}

#[tokio::test]
async fn everyone_comes_in_only_where_they_belong() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let primary = cluster.client("a").await;
    primary.batch_execute("CREATE DATABASE loans_db").await.unwrap();
    let params = cluster.spec.superuser(&cluster.spec.nodes[0]).unwrap();

    let replicator = params.as_user("replicator", cluster.spec.replicator_password.clone());
    let refused = connect(&replicator, LONG).await.unwrap_err();
    assert_eq!(refused.sqlstate(), Some("28000"), "{refused}");
    let app_user = params.as_user("app_user", Secret::generate());
    assert_eq!(connect(&app_user, LONG).await.unwrap_err().sqlstate(), Some("28000"));
    let plain = ConnectParams { tls: None, ..params.clone() };
    assert_eq!(connect(&plain, LONG).await.unwrap_err().sqlstate(), Some("28000"));

    // a rule given opens one database to one role, on running servers, after the supervisor's restart
    cluster.drop_supervisor();
    let secret = Secret::generate();
    roles::ensure_login_role(&*primary, "app_user", "", &secret).await.unwrap();
    cluster.spec.hba = vec![HbaRule::new(HbaDatabase::Named("loans_db".into()), "app_user", HbaSource::SameHost)];
    let before = cluster.pids();
    cluster.supervise();
    cluster.ready().await;
    assert_eq!(cluster.pids(), before);
    let app_user = params.as_user("app_user", secret);
    wait_until(LONG, || async { connect(&app_user.to_database("loans_db"), LONG).await.is_ok() }).await;
    assert_eq!(connect(&app_user, LONG).await.unwrap_err().sqlstate(), Some("28000"));

    // no secret on a command line, in an environment or in a log
    let secrets = [&cluster.spec.superuser_password, &cluster.spec.replicator_password];
    for secret in secrets {
        for pid in before.values() {
            for file in ["cmdline", "environ"] {
                let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
                assert!(!String::from_utf8_lossy(&text).contains(secret.reveal()));
            }
        }
        for name in ["a.log", "b.log"] {
            let text = std::fs::read_to_string(cluster.sandbox.path().join(name)).unwrap();
            assert!(!text.contains(secret.reveal()), "{name}");
        }
    }
    cluster.stop().await;
}
