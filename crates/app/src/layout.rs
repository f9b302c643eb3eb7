//! Where the platform's files are.

use std::path::{Path, PathBuf};

/// The folders of one platform.
///
/// ```text
/// DIR/millrace.toml, secrets.toml, tls/, pack/      what the user owns
/// DATA/nodes/<name>/                                data directories of the servers
/// DATA/warehouse/warehouse.duckdb, temp/            the warehouse
/// DATA/logs/millrace.log, <node>.log                logs
/// DATA/run/platform.lock, control.sock, pgpass      of the running platform, mode 0700
/// ```
///
/// Where the nodes are on many hosts this is the agent's, and the rest of the platform has the same again in
/// `DATA/platform/`: both may run on one host.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    data: PathBuf,
}

impl Layout {
    pub(crate) fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    /// Of what runs beside agents.
    pub(crate) fn beside_agents(&self) -> Self {
        Self::new(self.data.join("platform"))
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn nodes(&self) -> PathBuf {
        self.data.join("nodes")
    }

    /// The cluster's own record.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.data.join("cluster")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.data.join("run")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.run().join("platform.lock")
    }

    /// Passwords in libpq's file format, for psql; mode 0600.
    pub(crate) fn pgpass(&self) -> PathBuf {
        self.run().join("pgpass")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    pub(crate) fn platform_log(&self) -> PathBuf {
        self.logs().join("millrace.log")
    }

    pub(crate) fn node_log(&self, node: &str) -> PathBuf {
        self.logs().join(format!("{node}.log"))
    }

    pub(crate) fn warehouse(&self) -> PathBuf {
        self.data.join("warehouse")
    }

    pub(crate) fn warehouse_file(&self) -> PathBuf {
        self.warehouse().join("warehouse.duckdb")
    }

    /// Large transactions wait here for their commit.
    pub(crate) fn spill(&self) -> PathBuf {
        self.data.join("spill")
    }

    /// Throw-away copies of the cluster, a folder for each port.
    pub(crate) fn clones(&self) -> PathBuf {
        self.data.join("clones")
    }

    /// The files of one backup, whose blocks copies of it share.
    pub(crate) fn clone_base(&self) -> PathBuf {
        self.clones().join("base")
    }

    /// Where a backup is proven by restoring it.
    pub(crate) fn proof(&self) -> PathBuf {
        self.data.join("proof")
    }

    /// Every folder that the platform makes below its data folder.
    pub(crate) fn all(&self) -> [PathBuf; 8] {
        [
            self.nodes(),
            self.cluster(),
            self.warehouse(),
            self.spill(),
            self.clones(),
            self.proof(),
            self.logs(),
            self.run(),
        ]
    }
}
