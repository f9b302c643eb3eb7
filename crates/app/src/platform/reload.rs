//! Reading the files again while the platform runs: what can be another way at once becomes so, the rest is named.
//!
//! Invariants: files that are wrong change nothing; a password is changed on the primary before clients need it; what
//! other parts of the platform hold (passwords of the platform's own roles, ports, rules of the servers) waits for the
//! next start.

use std::sync::Arc;

use anyhow::Context as _;
use millrace_base::Secret;
use millrace_cluster::ClusterStatus;
use millrace_config::Config;
use millrace_contract::status::NodeRole;
use millrace_pg::{PgError, connect};
use millrace_proxy::{Handle, Read};
use tokio::sync::{Mutex, watch};

use super::{prepare, proxy};
use crate::{
    context::{CAPTURE_ROLE, Context, max_connections},
    explain::{Explained as _, chain},
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

/// Roles that reach the pack's database, with their passwords and that database.
pub(super) type Roles = Vec<(String, Secret, String)>;

/// As [`Roles`], of a platform.
pub(super) fn roles(context: &Context) -> anyhow::Result<Roles> {
    let database = &context.pack.database;
    let login = context.login_roles()?.into_iter().filter(|(_, _, databases)| databases.contains(database));
    Ok(login.map(|(name, password, _)| (name, password, database.clone())).collect())
}

/// Reads the files of a running platform.
#[derive(Debug)]
pub(super) struct Reloader {
    started: Arc<Context>,
    cluster: watch::Receiver<ClusterStatus>,
    roles: watch::Sender<Roles>,
    /// As it was started, but for what has been reloaded since.
    in_force: Mutex<Arc<Context>>,
}

impl Reloader {
    pub(super) fn new(
        started: Arc<Context>,
        cluster: watch::Receiver<ClusterStatus>,
        roles: watch::Sender<Roles>,
    ) -> Self {
        Self { in_force: Mutex::new(started.clone()), started, cluster, roles }
    }

    /// Reads whenever the proxy is asked to reload.
    pub(super) fn serve(self, proxy: &Handle) {
        let reloader = Arc::new(self);
        proxy.reread_with(move || {
            let reloader = reloader.clone();
            Box::pin(async move { reloader.read().await.map_err(|error| chain(error.as_ref())) })
        });
    }

    async fn read(&self) -> anyhow::Result<Read> {
        let mut in_force = self.in_force.lock().await;
        let (folder, output) = (self.started.config.folder.clone(), self.started.output);
        let files = tokio::task::spawn_blocking(move || Context::load(&folder, output)).await??;
        let (next, waits) = plan(&self.started, &in_force, files);
        // the proxy keeps the one that it began with
        let options = proxy::options(&next, Arc::default())?;
        let passwords = next.login_roles()?;
        let changed = passwords.iter().filter(|(role, password, _)| in_force.secrets.roles.get(role) != Some(password));
        let changed = changed.map(|(role, password, _)| (role.as_str(), password)).collect();
        tokio::time::timeout(DEADLINE, self.set_passwords(changed)).await.context(
            "the primary did not change passwords in time\n  hint: something holds their roles; try again",
        )??;
        self.roles.send_replace(roles(&next)?);
        *in_force = Arc::new(next);
        Ok(Read { options, waits })
    }

    /// All of them, or none.
    async fn set_passwords(&self, changed: Vec<(&str, &Secret)>) -> anyhow::Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let primary = {
            let cluster = self.cluster.borrow();
            let primary = cluster.nodes.iter().find(|node| node.role == NodeRole::Primary);
            primary.cloned().filter(|_| cluster.primary_ready)
        };
        let primary = primary.context("passwords have changed, and there is no primary that could be told\n  hint: try again when `millrace status` shows it")?;
        let client = connect(&self.started.superuser_at(&primary)?, DEADLINE).await.explained()?;
        let execute = async |sql: &str| client.batch_execute(sql).await.map_err(PgError::from).explained();
        execute("BEGIN").await?;
        for (role, password) in changed {
            prepare::login_role(&client, role, password).await?;
        }
        execute("COMMIT").await
    }
}

/// How the platform is to be from now on, and what of `files` has to wait for the next start.
fn plan(started: &Context, in_force: &Context, files: Context) -> (Context, Vec<String>) {
    let mut waits = Vec::new();
    let mut config = in_force.config.clone();
    let (held, wanted) = (&started.config, &files.config);
    let mut differs = |what: &str, differs: bool| {
        if differs {
            waits.push(format!("{what} in millrace.toml"));
        }
    };
    differs("[platform]", held.platform != wanted.platform);
    differs("[postgres] (see `millrace cluster reload`)", held.postgres != wanted.postgres);
    differs("[cluster] (see `millrace cluster reload`)", held.cluster != wanted.cluster);
    differs("[pack]", held.pack_dir != wanted.pack_dir);
    differs("[capture]", held.capture != wanted.capture);
    differs("[warehouse]", held.warehouse != wanted.warehouse);
    differs("[console]", held.console != wanted.console);
    config.proxy.clone_from(&wanted.proxy);
    let (mine, theirs) = (&held.proxy, &wanted.proxy);
    let mut fixed = |what: &str, from: String, to: String| {
        if from != to {
            waits.push(format!("{what}: {from} → {to}"));
        }
    };
    fixed("listen", mine.listen.to_string(), theirs.listen.to_string());
    fixed("port", mine.port.to_string(), theirs.port.to_string());
    fixed("read_only_port", mine.read_only_port.to_string(), theirs.read_only_port.to_string());
    let lag = |config: &Config| format!("{} bytes", config.proxy.replica_lag_max_bytes);
    fixed("replica_lag_max", lag(held), lag(wanted));
    // the servers must have been told to admit such roles
    if theirs.auth_query && !mine.auth_query {
        fixed("auth_query", false.to_string(), true.to_string());
    }
    let connections = |config: &Config| max_connections(config);
    if connections(wanted) > connections(held) {
        fixed("connections that a server admits", connections(held).to_string(), connections(wanted).to_string());
    }
    config.proxy.listen = mine.listen;
    config.proxy.port = mine.port;
    config.proxy.read_only_port = mine.read_only_port;
    config.proxy.replica_lag_max_bytes = mine.replica_lag_max_bytes;
    config.proxy.auth_query &= mine.auth_query;

    // a role that is new needs rules of the servers; one that is gone is refused at once
    let mut pack = in_force.pack.clone();
    let (before, now) = (&started.pack.roles, &files.pack.roles);
    pack.roles.retain(|role| now.iter().any(|same| same.name == role.name && same.login == role.login));
    if now.iter().any(|role| {
        !before.iter().any(|same| (&same.name, same.login, &same.connect) == (&role.name, role.login, &role.connect))
    }) {
        waits.push("roles of the pack".to_owned());
    }
    let mut secrets = in_force.secrets.clone();
    let mut roles = files.secrets.roles;
    let kept = |roles: &std::collections::BTreeMap<String, Secret>| roles.get(CAPTURE_ROLE).cloned();
    for (what, differs) in [
        ("superuser", secrets.superuser != files.secrets.superuser),
        ("replicator", secrets.replicator != files.secrets.replicator),
        ("warehouse_reader", secrets.warehouse_reader != files.secrets.warehouse_reader),
        ("console_session_key", secrets.console_session_key != files.secrets.console_session_key),
        (CAPTURE_ROLE, kept(&secrets.roles) != kept(&roles)),
    ] {
        if differs {
            waits.push(format!("{what} in secrets.toml"));
        }
    }
    if let Some(password) = kept(&secrets.roles) {
        roles.insert(CAPTURE_ROLE.to_owned(), password);
    }
    secrets.roles = roles;
    let next = Context { output: in_force.output, config, secrets, pack, layout: in_force.layout.clone() };
    (next, waits)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use millrace_base::Micros;

    use super::*;
    use crate::output::Output;

    fn load(folder: &Path) -> anyhow::Result<Context> {
        Context::load(folder, Output::new(false, true))
    }

    fn replace(file: &Path, old: &str, new: &str) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains(old), "{old}");
        std::fs::write(file, text.replace(old, new)).unwrap();
    }

    #[test]
    fn what_can_change_does_and_the_rest_waits() {
        let folder = tempfile::tempdir().unwrap();
        let platform = folder.path().join("platform");
        let pack =
            millrace_config::Pack::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packs/loans")).unwrap();
        millrace_config::init(&platform, &pack, &millrace_config::InitOptions::default(), Micros(0)).unwrap();
        let started = load(&platform).unwrap();
        let (same, waits) = plan(&started, &started, load(&platform).unwrap());
        assert_eq!((&same.config, &same.secrets, waits.len()), (&started.config, &started.secrets, 0));

        let toml = platform.join("millrace.toml");
        replace(&toml, "port = 6432", "port = 7000\npool_size = 60\nmax_client_conn = 7\nauth_query = true");
        replace(&toml, "port = 8400", "port = 8401");
        let secrets = platform.join("secrets.toml");
        let app = started.secrets.roles["app_user"].reveal();
        replace(&secrets, app, "another");
        replace(&secrets, started.secrets.roles[CAPTURE_ROLE].reveal(), "other");
        let (next, waits) = plan(&started, &started, load(&platform).unwrap());
        assert_eq!(
            waits,
            [
                "[console] in millrace.toml",
                "port: 6432 → 7000",
                "auth_query: false → true",
                "connections that a server admits: 160 → 300",
                "etl_reader in secrets.toml"
            ]
        );
        assert_eq!((next.config.proxy.port, next.config.proxy.pool.size), (6432, 60));
        assert!(!next.config.proxy.auth_query, "servers would not admit whom the proxy lets in");
        assert_eq!(next.secrets.roles["app_user"].reveal(), "another");
        assert_eq!(next.secrets.roles[CAPTURE_ROLE], started.secrets.roles[CAPTURE_ROLE]);

        replace(&toml, "pool_size = 60", "pool_size = \"many\"");
        let wrong = format!("{:#}", load(&platform).unwrap_err());
        assert!(wrong.contains("millrace.toml") && wrong.contains("pool_size"), "{wrong}");
    }
}
