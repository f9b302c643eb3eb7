//! `millrace.toml`: one platform, parsed and validated; immutable afterwards.
//!
//! Invariants: no two listeners share a port; node names and ports are unique; every path is
//! absolute or relative to where the process runs, never to the file. Not here: looking whether
//! ports are free or PostgreSQL is installed, which is the business of `millrace check`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_base::tls::TlsFiles;
use toml::de::DeValue;

use crate::{
    diagnostic::{Diagnostics, Source, suggest},
    error::ConfigError,
    schema,
    table::{Reader, identifier, kind, parse_document},
};

mod backup;
mod nodes;

pub use backup::{Backup, BackupRepository};
pub use nodes::Node;
use nodes::nodes;

/// The file's name in a platform's folder.
pub const FILE_NAME: &str = "millrace.toml";

/// One platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The folder of `millrace.toml`.
    pub folder: PathBuf,
    pub platform: Platform,
    pub postgres: Postgres,
    pub cluster: Cluster,
    /// Nodes are on many hosts.
    pub etcd: Option<Etcd>,
    /// The pack's folder.
    pub pack_dir: PathBuf,
    pub proxy: Proxy,
    pub capture: Capture,
    pub warehouse: Warehouse,
    pub console: Console,
    pub backup: Option<Backup>,
}

/// `[platform]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub name: String,
    pub data_dir: PathBuf,
    /// Runs the servers when the platform is started by root.
    pub user: String,
}

/// `[postgres]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    pub bin_dir: Option<PathBuf>,
    /// Lowercase name → value, unquoted; none that the platform keeps to itself.
    pub settings: BTreeMap<String, String>,
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub listen: IpAddr,
    /// Another primary is elected when the present one is lost.
    pub failover: bool,
    pub durability: Durability,
    /// Replicas that must have a commit on disk, with [`Durability::Quorum`].
    pub quorum: usize,
    /// Commits wait while fewer replicas than that are there.
    pub strict: bool,
    /// What may be missing on a replica that is elected, with [`Durability::Asynchronous`].
    pub loss_max_bytes: u64,
    /// A primary that has not answered for this long is replaced.
    pub silent_max: Duration,
    /// At least one; the first starts as the primary.
    pub nodes: Vec<Node>,
}

/// What a commit waits for before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The disks of the primary and of a quorum of replicas.
    Quorum,
    /// The primary's disk.
    Asynchronous,
}

/// `[etcd]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// At least one.
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub user: Option<String>,
    pub prefix: String,
    pub ttl: Duration,
    pub api_port: u16,
}

/// When a server connection goes to the next client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    Session,
    Transaction,
    Statement,
}

/// `[proxy]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    pub listen: IpAddr,
    pub port: u16,
    pub read_only_port: u16,
    pub replica_lag_max_bytes: u64,
    /// Reads of the read-write port go to replicas.
    pub route_reads: bool,
    pub workers: usize,
    /// Of every database that is not among `databases`.
    pub pool: PoolSettings,
    pub databases: Vec<ProxyDatabase>,
    pub users: Vec<ProxyUser>,
    pub max_client_conn: usize,
    pub max_user_connections: Option<usize>,
    pub max_db_connections: Option<usize>,
    /// Roles that are not the pack's may log in.
    pub auth_query: bool,
    pub require_tls: bool,
    /// Address and length of the prefix; none means any.
    pub allow: Vec<(IpAddr, u8)>,
}

/// How the connections of one database and user are pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    pub mode: PoolMode,
    pub size: usize,
    pub reserve: usize,
    pub reserve_timeout: Duration,
    pub min: usize,
    pub server_lifetime: Duration,
    pub server_idle_timeout: Duration,
    pub query_wait_timeout: Duration,
    pub max_prepared_statements: usize,
}

/// `[[proxy.databases]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyDatabase {
    pub name: String,
    pub pool: PoolSettings,
    /// Instead of `max_db_connections`.
    pub max_connections: Option<usize>,
}

/// `[[proxy.users]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUser {
    pub name: String,
    /// Instead of `max_user_connections`.
    pub max_connections: usize,
}

/// `[capture]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    pub batch_interval: Duration,
    pub batch_rows_max: usize,
    pub batch_bytes_max: u64,
    pub copy_workers: usize,
    pub publication: String,
    pub slot: String,
    pub slot_retention_max_bytes: u64,
}

/// Which engine stores the warehouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Duckdb,
}

/// `[warehouse]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warehouse {
    pub engine: Engine,
    pub listen: IpAddr,
    pub port: u16,
    pub memory_limit_bytes: u64,
    pub threads: usize,
    pub max_connections: usize,
}

/// `[console]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    pub listen: IpAddr,
    pub port: u16,
}

impl Config {
    /// Reads `millrace.toml` in `folder` and checks that the folders it names exist.
    ///
    /// # Errors
    /// [`ConfigError::NoPlatform`] if there is no such file; [`ConfigError::Invalid`] with every
    /// mistake found.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| ConfigError::NotText { path: path.clone() })?,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(ConfigError::NoPlatform { folder: folder.to_owned() });
            }
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        read(&path, &text, Folders::MustExist)
    }

    /// Parses a text without looking at the file system; `path` names it in errors, and its folder
    /// is the platform's.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every mistake found.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        read(path, text, Folders::Unchecked)
    }

    /// Where the passwords are.
    #[must_use]
    pub fn secrets_path(&self) -> PathBuf {
        self.folder.join(crate::secrets::FILE_NAME)
    }

    /// The platform's certificates.
    #[must_use]
    pub fn tls(&self) -> TlsFiles {
        TlsFiles::in_folder(self.folder.join("tls"))
    }

    /// The data of one server.
    #[must_use]
    pub fn node_dir(&self, node: &Node) -> PathBuf {
        self.platform.data_dir.join("nodes").join(&node.name)
    }

    /// Every listener: what it is, and its address.
    #[must_use]
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let mut all: Vec<_> = self
            .cluster
            .nodes
            .iter()
            .map(|n| (format!("node {}", n.name), SocketAddr::new(self.cluster.listen, n.port)))
            .collect();
        all.push(("proxy".to_owned(), SocketAddr::new(self.proxy.listen, self.proxy.port)));
        all.push(("proxy, read-only".to_owned(), SocketAddr::new(self.proxy.listen, self.proxy.read_only_port)));
        all.push(("warehouse".to_owned(), SocketAddr::new(self.warehouse.listen, self.warehouse.port)));
        all.push(("console".to_owned(), SocketAddr::new(self.console.listen, self.console.port)));
        all
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folders {
    MustExist,
    Unchecked,
}

fn read(path: &Path, text: &str, folders: Folders) -> Result<Config, ConfigError> {
    let source = Source::new(path, text);
    let document = parse_document(&source);
    let root = Reader::new(&source, &schema::ROOT, Some(document.get_ref()), 0..0);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let mut ports = Ports { source: &source, taken: Vec::new() };

    let platform = root.table("platform", &schema::PLATFORM);
    let name = if platform.is_present() { platform.name("name", 40, "-") } else { String::new() };
    let data_dir = platform.path("data_dir").map(|p| folder.join(p.value)).unwrap_or_default();
    let user = platform.read("user", |v| {
        let user = crate::table::text(v)?;
        if user == "root" {
            return Err(crate::table::Problem::new(
                "servers do not run as root",
                "name an unprivileged account, such as postgres",
            ));
        }
        identifier(user, 32, "-")
    });
    let platform = Platform { name, data_dir, user: user.map(|u| u.value).unwrap_or_default() };

    let postgres = root.table("postgres", &schema::POSTGRES);
    let bin_dir = folder_of(&postgres, "bin_dir", &folder, folders);
    let postgres = Postgres { bin_dir, settings: settings(&postgres) };

    let cluster = root.table("cluster", &schema::CLUSTER);
    let durability = cluster.read("durability", |v| match crate::table::text(v)?.as_str() {
        "quorum" => Ok(Durability::Quorum),
        "asynchronous" => Ok(Durability::Asynchronous),
        other => Err(crate::table::Problem {
            message: format!("there is no durability called `{other}`"),
            hint: suggest(other, "kinds of durability", &["quorum", "asynchronous"]),
        }),
    });
    let cluster = Cluster {
        listen: address(&cluster),
        failover: cluster.boolean("failover"),
        durability: durability.map_or(Durability::Quorum, |at| at.value),
        quorum: usize::try_from(cluster.integer("quorum", 1..=8)).unwrap_or(1),
        strict: cluster.boolean("wait_for_replicas"),
        loss_max_bytes: cluster.size("loss_max", 0..=u64::MAX >> 1),
        silent_max: Duration::from_millis(cluster.integer("silent_max_ms", 1_000..=600_000)),
        nodes: nodes(&cluster, &mut ports),
    };

    let table = root.table("etcd", &schema::ETCD);
    let etcd = table.is_present().then(|| etcd(&table, &platform.name, &folder, &mut ports));
    check_hosts(&root, &cluster, etcd.is_some());

    let pack = root.table("pack", &schema::PACK_REFERENCE);
    let pack_dir = folder_of(&pack, "path", &folder, folders).unwrap_or_default();

    let proxy = proxy(&root.table("proxy", &schema::PROXY), &mut ports);
    let capture = capture(&root.table("capture", &schema::CAPTURE));

    let table = root.table("warehouse", &schema::WAREHOUSE);
    let engine = table.read("engine", |v| match crate::table::text(v)?.as_str() {
        "duckdb" => Ok(Engine::Duckdb),
        other => Err(crate::table::Problem {
            message: format!("there is no engine called `{other}`"),
            hint: suggest(other, "engines", &["duckdb"]),
        }),
    });
    let port = ports.take(&table, "port", || "the warehouse".to_owned());
    let warehouse = Warehouse {
        engine: engine.map_or(Engine::Duckdb, |e| e.value),
        listen: address(&table),
        port,
        memory_limit_bytes: table.size("memory_limit", 128 << 20..=u64::MAX),
        threads: count(&table, "threads", 256),
        max_connections: count(&table, "max_connections", 10_000),
    };

    let table = root.table("backup", &schema::BACKUP);
    let backup = table.is_present().then(|| backup::backup(&table, &folder));

    let table = root.table("console", &schema::CONSOLE);
    let port = ports.take(&table, "port", || "the console".to_owned());
    let console = Console { listen: address(&table), port };

    ports.check();
    let found = source.into_found();
    if !found.is_empty() {
        return Err(ConfigError::Invalid(Diagnostics(found)));
    }
    Ok(Config { folder, platform, postgres, cluster, etcd, pack_dir, proxy, capture, warehouse, console, backup })
}

const CONNECTIONS_MAX: u64 = 1_000_000;

fn proxy(table: &Reader<'_>, ports: &mut Ports<'_>) -> Proxy {
    let maybe = |name| table.integer_maybe(name, 1..=CONNECTIONS_MAX).and_then(|n| usize::try_from(n).ok());
    let pool = pool(table, &LEAST);
    Proxy {
        listen: address(table),
        port: ports.take(table, "port", || "the proxy".to_owned()),
        read_only_port: ports.take(table, "read_only_port", || "the proxy, read-only".to_owned()),
        replica_lag_max_bytes: table.size("replica_lag_max", 1 << 20..=u64::MAX),
        route_reads: table.boolean("route_reads"),
        workers: count(table, "workers", 64),
        pool,
        databases: proxy_databases(table, &pool),
        users: proxy_users(table),
        max_client_conn: count(table, "max_client_conn", CONNECTIONS_MAX),
        max_user_connections: maybe("max_user_connections"),
        max_db_connections: maybe("max_db_connections"),
        auth_query: table.boolean("auth_query"),
        require_tls: table.boolean("require_tls"),
        allow: networks(table),
    }
}

/// Stands where a value is wrong, which has been recorded.
const LEAST: PoolSettings = PoolSettings {
    mode: PoolMode::Transaction,
    size: 1,
    reserve: 0,
    reserve_timeout: Duration::ZERO,
    min: 0,
    server_lifetime: Duration::from_secs(1),
    server_idle_timeout: Duration::from_secs(1),
    query_wait_timeout: Duration::from_secs(1),
    max_prepared_statements: 1,
};

/// What a table says of pools, and `below` where it says nothing.
fn pool(table: &Reader<'_>, below: &PoolSettings) -> PoolSettings {
    let number =
        |name, range, below| table.integer_maybe(name, range).and_then(|n| usize::try_from(n).ok()).unwrap_or(below);
    let seconds = |name, most, below| table.integer_maybe(name, 1..=most).map_or(below, Duration::from_secs);
    let mode = table.read("pool_mode", |v| match crate::table::text(v)?.as_str() {
        "session" => Ok(PoolMode::Session),
        "transaction" => Ok(PoolMode::Transaction),
        "statement" => Ok(PoolMode::Statement),
        other => Err(crate::table::Problem {
            message: format!("there is no pool mode called `{other}`"),
            hint: suggest(other, "modes", &["transaction", "session", "statement"]),
        }),
    });
    PoolSettings {
        mode: mode.map_or(below.mode, |mode| mode.value),
        size: number("pool_size", 1..=10_000, below.size),
        reserve: number("reserve_pool_size", 0..=10_000, below.reserve),
        reserve_timeout: table
            .integer_maybe("reserve_pool_timeout_ms", 0..=3_600_000)
            .map_or(below.reserve_timeout, Duration::from_millis),
        min: number("min_pool_size", 0..=10_000, below.min),
        server_lifetime: seconds("server_lifetime_s", 604_800, below.server_lifetime),
        server_idle_timeout: seconds("server_idle_timeout_s", 604_800, below.server_idle_timeout),
        query_wait_timeout: seconds("query_wait_timeout_s", 3_600, below.query_wait_timeout),
        max_prepared_statements: number("max_prepared_statements", 1..=10_000, below.max_prepared_statements),
    }
}

fn proxy_databases(proxy: &Reader<'_>, pool: &PoolSettings) -> Vec<ProxyDatabase> {
    let tables = proxy.tables("databases", &schema::PROXY_DATABASE).unwrap_or_default();
    let names = names(&tables, "databases");
    let settings = tables.iter().map(|table| {
        let most = table.integer_maybe("max_connections", 1..=CONNECTIONS_MAX);
        (self::pool(table, pool), most.and_then(|n| usize::try_from(n).ok()))
    });
    let each = names.into_iter().zip(settings);
    each.map(|(name, (pool, max_connections))| ProxyDatabase { name, pool, max_connections }).collect()
}

fn proxy_users(proxy: &Reader<'_>) -> Vec<ProxyUser> {
    let tables = proxy.tables("users", &schema::PROXY_USER).unwrap_or_default();
    let names = names(&tables, "users");
    let most = tables.iter().map(|table| count(table, "max_connections", CONNECTIONS_MAX));
    names.into_iter().zip(most).map(|(name, max_connections)| ProxyUser { name, max_connections }).collect()
}

/// The names of databases or users, which are PostgreSQL's: any text. No two are the same.
fn names(tables: &[Reader<'_>], what: &str) -> Vec<String> {
    const NAME_BYTES_MAX: usize = 63;
    let mut names: Vec<String> = Vec::new();
    for table in tables {
        let name = table.read("name", |v| {
            let name = crate::table::text(v)?;
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(crate::table::Problem::new("is no name of PostgreSQL's", "1 to 63 bytes"));
            }
            Ok(name)
        });
        if let Some(name) = &name
            && names.contains(&name.value)
        {
            table.wrong(
                name.span.clone(),
                format!("two {what} are called `{}`", name.value),
                Some("write what holds for it in one place".to_owned()),
            );
        }
        names.push(name.map(|name| name.value).unwrap_or_default());
    }
    names
}

fn networks(table: &Reader<'_>) -> Vec<(IpAddr, u8)> {
    let mut networks = Vec::new();
    for text in table.texts("allow") {
        let (address, prefix) = text.split_once('/').map_or((text.as_str(), None), |(a, p)| (a, Some(p)));
        let address = address.parse::<IpAddr>().ok();
        let most = if address.is_some_and(|a| a.is_ipv6()) { 128 } else { 32 };
        let prefix = prefix.map_or(Some(most), |p| p.parse().ok()).filter(|p| *p <= most);
        match address.zip(prefix) {
            Some(network) => networks.push(network),
            None => {
                let hint = "write an address, or a range such as \"10.0.0.0/8\"".to_owned();
                table.wrong(None, format!("`allow`: `{text}` is not a range of addresses"), Some(hint));
            }
        }
    }
    networks
}

fn capture(table: &Reader<'_>) -> Capture {
    Capture {
        batch_interval: Duration::from_millis(table.integer("batch_interval_ms", 10..=3_600_000)),
        batch_rows_max: count(table, "batch_rows_max", 10_000_000),
        batch_bytes_max: table.size("batch_bytes_max", 1 << 20..=4 << 30),
        copy_workers: count(table, "copy_workers", 64),
        publication: table.name("publication", 63, ""),
        slot: table.name("slot", 63, ""),
        slot_retention_max_bytes: table.size("slot_retention_max", 64 << 20..=u64::MAX),
    }
}

fn count(table: &Reader<'_>, name: &'static str, most: u64) -> usize {
    usize::try_from(table.integer(name, 1..=most)).unwrap_or(1)
}

fn address(table: &Reader<'_>) -> IpAddr {
    table.address("listen").unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn folder_of(table: &Reader<'_>, name: &'static str, base: &Path, folders: Folders) -> Option<PathBuf> {
    let at = table.path(name)?;
    let path = base.join(&at.value);
    if folders == Folders::MustExist && !path.is_dir() {
        let what = if path.exists() { "is not a folder" } else { "does not exist" };
        let hint = if at.value.is_relative() {
            "paths are relative to the folder of millrace.toml"
        } else {
            "make the folder, or correct the path"
        };
        table.wrong(at.span, format!("`{name}`: {} {what}", path.display()), Some(hint.to_owned()));
    }
    Some(path)
}

fn etcd(table: &Reader<'_>, platform: &str, folder: &Path, ports: &mut Ports<'_>) -> Etcd {
    let file = |name| table.path(name).map(|at| folder.join(at.value));
    let endpoints = table.texts("endpoints");
    let ca = file("ca");
    for endpoint in &endpoints {
        let (https, http) = (endpoint.starts_with("https://"), endpoint.starts_with("http://"));
        let wrong = match (https, http, &ca) {
            (true, _, None) => "is https, and `ca` is absent",
            (_, true, Some(_)) => "is http, and `ca` is there",
            (false, false, _) => "does not begin with https:// or http://",
            _ => continue,
        };
        let hint = "write https://HOST:2379, and `ca`: the file with the authority's certificate".to_owned();
        table.wrong(None, format!("`endpoints`: `{endpoint}` {wrong}"), Some(hint));
    }
    if endpoints.is_empty() {
        table.wrong(None, "`endpoints`: at least one is needed", Some("write [\"https://HOST:2379\"]".to_owned()));
    }
    let prefix = table.text_maybe("prefix").unwrap_or_else(|| format!("/millrace/{platform}"));
    Etcd {
        endpoints,
        ca,
        certificate: file("certificate"),
        key: file("key"),
        user: table.text_maybe("user"),
        prefix,
        ttl: Duration::from_secs(table.integer("ttl_seconds", 2..=300)),
        api_port: ports.take(table, "api_port", || "the agent's API".to_owned()),
    }
}

/// Each node has a host if nodes are on many, and none if they are not.
fn check_hosts(root: &Reader<'_>, cluster: &Cluster, many: bool) {
    for node in &cluster.nodes {
        let (what, hint) = match (many, node.host) {
            (true, None) => ("has no host", "write host = \"ADDRESS\" under its name"),
            (false, Some(_)) => ("has a host, and there is no [etcd]", "add [etcd], or remove host"),
            _ => continue,
        };
        root.wrong(None, format!("node `{}` {what}", node.name), Some(hint.to_owned()));
    }
}

fn settings(postgres: &Reader<'_>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for (key, span, value) in postgres.free_table("settings") {
        let name = key.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(plain) {
            postgres.wrong(Some(span), format!("`{key}` is not the name of a setting"), None);
            continue;
        }
        if let Some((_, why)) = schema::RESERVED_SETTINGS.iter().find(|(reserved, _)| *reserved == name) {
            postgres.wrong(Some(span), format!("`{name}` is set by the platform"), Some((*why).to_owned()));
            continue;
        }
        let text = match value.get_ref() {
            DeValue::String(s) if s.contains(['\n', '\r', '\0']) => {
                postgres.wrong(Some(value.span()), format!("`{name}`: a value is one line"), None);
                continue;
            }
            DeValue::String(s) => s.as_ref().to_owned(),
            DeValue::Integer(n) => n.to_string(),
            DeValue::Float(n) => n.to_string(),
            DeValue::Boolean(b) => if *b { "on" } else { "off" }.to_owned(),
            other => {
                postgres.wrong(
                    Some(value.span()),
                    format!("`{name}`: must be a text, a number or a boolean, found {}", kind(other)),
                    None,
                );
                continue;
            }
        };
        settings.insert(name, text);
    }
    settings
}

/// Who listens where, while the file is read.
struct Ports<'a> {
    source: &'a Source<'a>,
    taken: Vec<Taken>,
}

struct Taken {
    port: u16,
    by: String,
    /// `None` for a default.
    span: Option<Range<usize>>,
}

impl Ports<'_> {
    fn take(&mut self, table: &Reader<'_>, key: &'static str, by: impl FnOnce() -> String) -> u16 {
        let Some(at) = table.port(key) else { return 0 };
        self.taken.push(Taken { port: at.value, by: by(), span: at.span });
        at.value
    }

    /// A port used twice is told at the later written place and names the other.
    fn check(&self) {
        for (i, later) in self.taken.iter().enumerate() {
            let Some(earlier) = self.taken.iter().take(i).find(|t| t.port == later.port) else { continue };
            let (here, other) = match (&earlier.span, &later.span) {
                (Some(a), Some(b)) if a.start > b.start => (earlier, later),
                (Some(_), None) => (earlier, later),
                _ => (later, earlier),
            };
            let place = match &other.span {
                Some(span) => format!("line {}", self.source.line(span.start)),
                None => "its default".to_owned(),
            };
            self.source.wrong(
                here.span.clone().unwrap_or(0..0),
                format!("port {} is used twice: by {} and by {} ({place})", later.port, here.by, other.by),
                Some("give each listener its own port".to_owned()),
            );
        }
    }
}
