//! Azure's protocol, as Microsoft's own emulator (Azurite) speaks it.

use std::{path::PathBuf, process::Stdio};

use millrace_backup::repo::{AzureLocation, Location};
use millrace_base::Secret;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::s3::{chain, open, there_and_back};

/// Known to every emulator.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const CONTAINER: &str = "box";

struct Emulator {
    _process: Child,
    port: u16,
}

impl Emulator {
    /// `make setup` installs it.
    async fn serve(folder: &std::path::Path) -> Self {
        let installed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/azurite");
        let program = installed.join("node_modules/.bin/azurite-blob");
        let mut process = Command::new(program)
            .args(["--blobPort", "0", "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location"])
            .arg(folder)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Azurite: `make setup` installs it");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port: u16 = loop {
            let line = lines.next_line().await.unwrap().expect("Azurite says where it listens");
            if let Some((_, port)) = line.split_once("successfully listens on http://127.0.0.1:") {
                break port.trim().parse().unwrap();
            }
        };
        let mut make = Command::new("node");
        make.arg(installed.join("container.mjs")).args([&port.to_string(), ACCOUNT, KEY, CONTAINER]);
        assert!(make.status().await.unwrap().success(), "the container is made");
        Self { _process: process, port }
    }

    fn location(&self) -> AzureLocation {
        AzureLocation {
            endpoint: Some(format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)),
            container: CONTAINER.to_owned(),
            prefix: "loans".to_owned(),
            account: ACCOUNT.to_owned(),
            key: Secret::new(KEY),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_into_a_container_of_azure_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let emulator = Emulator::serve(folder.path()).await;
    there_and_back(Location::Azure(emulator.location())).await;

    let wrong = |change: fn(&mut AzureLocation)| {
        let mut location = emulator.location();
        change(&mut location);
        async move { chain(open(Location::Azure(location)).repo.clusters().await.unwrap_err()) }
    };
    let said = wrong(|azure| azure.container = "other".to_owned()).await;
    assert!(said.contains("az://other/loans") && said.contains("ContainerNotFound"), "{said}");
    let said = wrong(|azure| azure.key = Secret::new("bm9ib2R5")).await;
    assert!(said.contains("AuthorizationFailure") || said.contains("403"), "{said}");
}
