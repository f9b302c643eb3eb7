//! `millrace init`: a new platform's folder.
//!
//! Invariants: nothing that exists is overwritten; `millrace.toml` is written last, so that a
//! folder with it is complete; a folder that an interrupted init left is recognised by its marker
//! and made anew. Not here: deciding whether the servers' account can reach the data folder, which
//! the caller asks `pg` and hands in.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use millrace_base::{
    Micros, Secret, files,
    tls::{TlsFiles, default_hosts},
};
use sha2::{Digest, Sha256};

use crate::{Pack, Secrets, config, error::ConfigError, secrets};

/// Present while the folder is being made.
const MARKER: &str = ".millrace-init";
/// All that init writes, besides the marker.
const ENTRIES: [&str; 5] = [config::FILE_NAME, secrets::FILE_NAME, ".gitignore", "pack", "tls"];
/// The role that capture reads with; it needs a password whatever the pack declares.
const CAPTURE_ROLE: &str = "etl_reader";

const GITIGNORE: &str = "# what is secret or large does not belong into version control\n\
                         /secrets.toml\n/tls/*.key\n/data/\n/run/\n/logs/\n";

/// What may differ from the usual.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Of the platform; the pack's name if absent.
    pub name: Option<String>,
    /// Instead of `data` in the folder, with the reason, which is written beside it.
    pub data_dir: Option<(PathBuf, String)>,
    /// First of the ports: nodes, warehouse and console in a row.
    pub base_port: Option<u16>,
    /// The account that runs the servers; `postgres` if absent.
    pub user: Option<String>,
    /// A node on each, in this order; if there are none, three on this host.
    pub hosts: Vec<IpAddr>,
    /// Where the agents of `hosts` meet.
    pub etcd: Vec<String>,
    /// Opens the backups; all hosts are to have the same.
    pub backup_key: Option<Secret>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReport {
    pub folder: PathBuf,
    pub name: String,
    pub data_dir: PathBuf,
    /// An interrupted init was cleared away first.
    pub repeated: bool,
}

/// Makes a platform in `folder`, which must be absent or empty.
///
/// # Errors
/// [`ConfigError::NotEmpty`] or [`ConfigError::PlatformExists`] without having changed anything;
/// [`ConfigError::PortRange`]; [`ConfigError::Write`] and [`ConfigError::Tls`], after which the
/// same call can be repeated.
pub fn init(folder: &Path, pack: &Pack, options: &InitOptions, now: Micros) -> Result<InitReport, ConfigError> {
    let name = options.name.clone().unwrap_or_else(|| pack.name.clone());
    let text = render(&name, options)?;
    // what the options say is checked by the same rules as what a person writes
    let config = config::Config::parse(&folder.join(config::FILE_NAME), &text)?;

    let hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
    let repeated = prepare(folder)?;
    let marker = folder.join(MARKER);
    write(&marker, "millrace init did not finish here; repeat it, or remove this folder\n", 0o644)?;
    pack.write_to(&folder.join("pack"))?;
    let mut roles: Vec<&str> = pack.login_roles().collect();
    if !roles.contains(&CAPTURE_ROLE) {
        roles.push(CAPTURE_ROLE);
    }
    let secrets = Secrets { backup_key: options.backup_key.clone(), ..Secrets::generate(roles) };
    secrets.write(&folder.join(secrets::FILE_NAME))?;
    TlsFiles::in_folder(folder.join("tls")).generate(&default_hosts(&hosts), now)?;
    write(&folder.join(".gitignore"), GITIGNORE, 0o644)?;
    write(&folder.join(config::FILE_NAME), &text, 0o644)?;
    fs::remove_file(&marker).map_err(|source| ConfigError::Write { path: marker, source })?;
    Ok(InitReport { folder: folder.to_owned(), name, data_dir: config.platform.data_dir, repeated })
}

/// Where data goes when the servers' account cannot reach the platform's folder: the same for the
/// same folder, different for another.
#[must_use]
pub fn fallback_data_dir(name: &str, folder: &Path) -> PathBuf {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    let short = digest.iter().take(4).fold(String::new(), |mut hex, byte| {
        let _infallible = write!(hex, "{byte:02x}");
        hex
    });
    Path::new("/var/lib/millrace").join(format!("{name}-{short}"))
}

/// Makes the folder; clears what an interrupted init left and says whether there was such.
fn prepare(folder: &Path) -> Result<bool, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: folder.to_owned(), source };
    let unwritable = |source| ConfigError::Write { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            files::create_dir_all(folder, 0o755).map_err(unwritable)?;
            return Ok(false);
        }
        Err(source) => return Err(unreadable(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let Some(first) = names.first() else { return Ok(false) };
    if !names.iter().any(|n| n == MARKER) {
        if names.iter().any(|n| n == config::FILE_NAME) {
            return Err(ConfigError::PlatformExists { folder: folder.to_owned() });
        }
        return Err(ConfigError::NotEmpty { folder: folder.to_owned(), entry: first.clone() });
    }
    // a name of ours with `.new` is a file that was being written
    let ours = |n: &str| n == MARKER || ENTRIES.contains(&n.strip_suffix(".new").unwrap_or(n));
    if let Some(stranger) = names.iter().find(|n| !ours(n)) {
        return Err(ConfigError::NotEmpty { folder: folder.to_owned(), entry: stranger.clone() });
    }
    for name in names.iter().filter(|n| *n != MARKER) {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| ConfigError::Write { path, source })?;
    }
    Ok(true)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), ConfigError> {
    files::write_atomic(path, text.as_bytes(), mode)
        .map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

/// `millrace.toml` with what every key means.
fn render(name: &str, options: &InitOptions) -> Result<String, ConfigError> {
    let ports: Vec<u16> = match options.base_port {
        None => vec![5440, 5441, 5442, 5435, 8400, 6432, 6433],
        Some(first) => {
            let last = u32::from(first) + 6;
            if last > u32::from(u16::MAX) {
                return Err(ConfigError::PortRange { first, last });
            }
            (0..7).map(|n| first + n).collect()
        }
    };
    let [a, b, c, warehouse, console, proxy, read_only] = ports.as_slice() else {
        return Err(ConfigError::PortRange { first: 0, last: 0 });
    };
    let quoted = |text: &str| toml_edit::value(text).to_string();
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line("# One platform. Every key and its meaning: docs/configuration.md of Millrace.");
    line("# Lines that begin with `#` show the defaults. After a change: millrace check, then down and up.");
    line("");
    line("[platform]");
    line(&format!("name = {}", quoted(name)));
    match &options.data_dir {
        Some((path, reason)) => {
            for part in reason.lines() {
                line(&format!("# {part}"));
            }
            line(&format!("data_dir = {}", quoted(&path.to_string_lossy())));
        }
        None => line("data_dir = \"data\""),
    }
    line("# Runs the servers when the platform is started by root; PostgreSQL refuses to run as root.");
    line(&format!("user = {}", quoted(options.user.as_deref().unwrap_or("postgres"))));
    line("");
    line("[postgres]");
    line("# Where postgres and initdb are; searched for if absent.");
    line("# bin_dir = \"/usr/lib/postgresql/15/bin\"");
    line("# More server settings, as in postgresql.conf.");
    line("# settings = { shared_buffers = \"1GB\", work_mem = \"32MB\" }");
    line("");
    line("# The servers: the first one starts as the primary, the others follow it.");
    line("[cluster]");
    // with nodes on many hosts, others reach what listens here
    let listen = if options.hosts.is_empty() { "listen = \"127.0.0.1\"" } else { "listen = \"0.0.0.0\"" };
    line(listen);
    if options.hosts.is_empty() {
        for (name, port) in [("a", a), ("b", b), ("c", c)] {
            line("");
            line("[[cluster.nodes]]");
            line(&format!("name = \"{name}\""));
            line(&format!("port = {port}"));
        }
    } else {
        for (name, host) in ('a'..='z').zip(&options.hosts) {
            line("");
            line("[[cluster.nodes]]");
            line(&format!("name = \"{name}\""));
            line(&format!("host = \"{host}\""));
            line(&format!("port = {a}"));
        }
        line("");
        line("# Where the agents meet; `millrace agent NODE` runs on each host.");
        line("[etcd]");
        let endpoints: Vec<String> = options.etcd.iter().map(|endpoint| quoted(endpoint)).collect();
        line(&format!("endpoints = [{}]", endpoints.iter().map(|e| e.trim()).collect::<Vec<_>>().join(", ")));
        if options.etcd.iter().any(|endpoint| endpoint.starts_with("https://")) {
            line("ca = \"tls/etcd-ca.crt\"");
        }
        line("# ttl_seconds = 3");
    }
    line("");
    line("[pack]");
    line("path = \"pack\"");
    line("");
    line("# Where applications connect: it pools connections and follows the primary.");
    line("[proxy]");
    line(listen);
    line(&format!("port = {proxy}"));
    line(&format!("read_only_port = {read_only}"));
    line("# pool_mode = \"transaction\"");
    line("# pool_size = 25");
    line("# max_client_conn = 1000");
    line("");
    line("# Changes on their way to the warehouse: a batch ends with the first limit it meets.");
    line("[capture]");
    line("# batch_interval_ms = 1000");
    line("# batch_rows_max = 50000");
    line("# batch_bytes_max = \"64MiB\"");
    line("# copy_workers = 2");
    line(
        "# Log that the primary keeps for a reader that lags. Past it the copy starts anew, but the disk does not fill.",
    );
    line("# slot_retention_max = \"8GiB\"");
    line("");
    line("[warehouse]");
    line("listen = \"127.0.0.1\"");
    line(&format!("port = {warehouse}"));
    line("# memory_limit = \"1GiB\"");
    line("# threads = 2");
    line("");
    line("# The web pages. 0.0.0.0 offers them to the network.");
    line("[console]");
    line("listen = \"127.0.0.1\"");
    line(&format!("port = {console}"));
    Ok(text)
}
