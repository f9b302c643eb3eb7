//! What is refused before anything is touched.

use std::sync::Arc;

use millrace_base::SystemClock;
use millrace_cluster::{ClusterError, ClusterSpec, Supervisor};
use millrace_pg::{RunAs, ServerError, Setting};
use millrace_testkit::Sandbox;

use crate::harness::spec_in;

fn refusal(spec: &ClusterSpec) -> ClusterError {
    match Supervisor::new(spec.clone(), Arc::new(SystemClock::new())) {
        Ok(_) => panic!("it was let through"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn bad_places_are_refused_with_words() {
    let sandbox = Sandbox::new();
    let spec = spec_in(sandbox.path(), &["a", "b"]);

    let taken = std::net::TcpListener::bind(("127.0.0.1", spec.nodes[1].port)).unwrap();
    let error = refusal(&spec);
    assert_eq!(error.to_string(), format!("node b: port {} is in use", spec.nodes[1].port));
    assert!(error.hint().unwrap().contains("ss -ltnp"));
    drop(taken);

    let folder = spec.nodes[0].folder.clone();
    std::fs::create_dir(&folder).unwrap();
    if RunAs::resolve(None).unwrap().name() == "postgres" {
        // root's folder, where servers run as postgres
        let error = refusal(&spec);
        assert!(error.to_string().contains("belongs to root, not to \"postgres\""), "{error}");
        assert!(error.hint().unwrap().contains("chown -R postgres"));
        spec.run_as.own(&folder).unwrap();
    }

    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    spec.run_as.own(&data).unwrap();
    std::fs::write(data.join("holiday.jpg"), "x").unwrap();
    let error = refusal(&spec);
    assert!(error.to_string().ends_with("is not empty and not a PostgreSQL data directory"), "{error}");

    std::fs::create_dir(data.join("base")).unwrap();
    std::fs::write(data.join("PG_VERSION"), "9.6\n").unwrap();
    let error = refusal(&spec);
    assert!(matches!(error, ClusterError::Node { source: ServerError::WrongVersion { .. }, .. }), "{error}");
    assert!(data.join("holiday.jpg").exists(), "nothing there was touched");

    let mut same = spec.clone();
    same.nodes[1].port = same.nodes[0].port;
    assert!(refusal(&same).to_string().contains("two nodes use port"));
    let mut reserved = spec;
    reserved.settings.push(Setting::new("WAL_level", "minimal", ""));
    assert!(refusal(&reserved).to_string().contains("the setting WAL_level is the platform's to decide"));
}
