//! One data directory: made, configured, and what it needs beside it.
//!
//! A node's folder holds `data/` (the data directory), `private/` (its TLS key, certificates and
//! password file, mode 0700) and, while one is being made, `data.incoming/`: a data directory
//! appears under its own name only when it is whole and configured, so an interrupted initdb or
//! base backup is recognised by its name and made anew.
//! Invariant: everything in the folder belongs to the unprivileged user.
//!
//! Unix sockets are not opened at all: every way into a server is TCP with TLS and SCRAM, so
//! there is one way to secure and to watch, and no limit on the length of paths.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use millrace_base::{Secret, files, tls::TlsFiles};

use crate::{
    binaries::Binaries,
    control_file::{self, SHARED_SETTINGS},
    error::ServerError,
    hba::{self, HbaRule},
    run_as::RunAs,
    settings::{self, Setting},
};

/// Included by the server's `postgresql.conf`.
const CONF: &str = "millrace.conf";

/// What a server is made and started from.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    pub binaries: Binaries,
    pub run_as: RunAs,
    /// The node's folder; made if absent, its parent must be there.
    pub folder: PathBuf,
    /// What the server writes, appended.
    pub log_file: PathBuf,
    pub listen: Vec<String>,
    pub port: u16,
    /// The certificate that the server presents and the authority it hands to its replicas.
    pub tls: TlsFiles,
    /// Beyond those that this crate itself sets ([`ServerSpec::configure`]).
    pub settings: Vec<Setting>,
    pub hba: Vec<HbaRule>,
}

/// Where a replica's log comes from.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// A name or address that the upstream's certificate names.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Secret,
    /// The physical slot on the upstream.
    pub slot: String,
    /// The replica's name in `pg_stat_replication`.
    pub application_name: String,
}

impl ServerSpec {
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A data directory that is being made.
    #[must_use]
    pub fn incoming_dir(&self) -> PathBuf {
        self.folder.join("data.incoming")
    }

    /// Key, certificates and password file of this node.
    #[must_use]
    pub fn private_dir(&self) -> PathBuf {
        self.folder.join("private")
    }

    /// Makes a new, empty cluster: checksums on, UTF-8, superuser `postgres` with `password`.
    ///
    /// The locale is `C.UTF-8`: it sorts by code point, the same on every machine and as the
    /// warehouse does, and no upgrade of the C library can silently break an index.
    ///
    /// # Errors
    /// If there is a data directory already, the place is not reachable or initdb fails; then nothing is left.
    pub async fn initdb(&self, password: &Secret) -> Result<(), ServerError> {
        let data = self.data_dir();
        if data.exists() {
            return Err(ServerError::NotADataDirectory { path: data });
        }
        self.prepare_folder()?;
        let incoming = self.incoming_dir();
        remove(&incoming)?;
        let password_file = self.private_file("initdb.password", &format!("{}\n", password.reveal()))?;

        let mut command = self.command("initdb");
        command
            .arg("--pgdata")
            .arg(&incoming)
            .args(["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"])
            .args(["--auth=scram-sha-256", "--no-instructions"])
            .arg("--pwfile")
            .arg(&password_file.0);
        run(command, "initdb", Duration::from_secs(120)).await?;
        drop(password_file);
        self.configure_dir(&incoming, None)?;
        self.settle()
    }

    /// Writes the configuration of an existing data directory anew; a running server takes it at
    /// the next reload or start. Says whether anything changed.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn configure(&self, upstream: Option<&Upstream>) -> Result<bool, ServerError> {
        self.prepare_folder()?;
        self.configure_dir(&self.data_dir(), upstream)
    }

    /// Has the server's program read the configuration with [`ServerSpec::settings`] on top, as at a start. Nothing is
    /// changed, and a running server does not mind.
    ///
    /// # Errors
    /// [`ServerError::Program`] with the program's words, if it would not start with them.
    pub async fn check_settings(&self) -> Result<(), ServerError> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir()).args(["-C", "server_version"]);
        for setting in &self.settings {
            command.arg("-c").arg(format!("{}={}", setting.name, setting.value));
        }
        run(command, "postgres", Duration::from_secs(30)).await.map(drop)
    }

    pub(crate) fn configure_dir(&self, data: &Path, upstream: Option<&Upstream>) -> Result<bool, ServerError> {
        let mut changed = self.write_private_files(upstream)?;
        changed |= self.write(&data.join("pg_hba.conf"), hba::render(&self.hba).as_bytes())?;
        let mut settings = self.all_settings(upstream);
        // a standby refuses to replay with less than its primary had, and so does what comes out of a backup
        let replays = |signal: &str| data.join(signal).exists();
        let standby = upstream.is_some() || replays("standby.signal") || replays("recovery.signal");
        if let (true, Ok(control)) = (standby, control_file::read(data)) {
            settings.extend(self.no_less_than(control.shared_settings));
        }
        changed |= self.write(&data.join(CONF), settings::render(&settings).as_bytes())?;

        let main = data.join("postgresql.conf");
        let text = fs::read_to_string(&main).map_err(ServerError::io("read", &main))?;
        let include = format!("include '{CONF}'");
        if !text.lines().any(|line| line.trim() == include) {
            let text = format!(
                "{text}\n# What the platform decides, with reasons; it wins over everything above.\n{include}\n"
            );
            changed |= self.write(&main, text.as_bytes())?;
        }
        Ok(changed)
    }

    /// The files of `private/`: the server's key is read by the server's user, never by another.
    pub(crate) fn write_private_files(&self, upstream: Option<&Upstream>) -> Result<bool, ServerError> {
        let tls = [
            (self.tls.server_cert(), "server.crt"),
            (self.tls.server_key(), "server.key"),
            (self.tls.ca_cert(), "ca.crt"),
        ];
        let mut changed = false;
        for (from, name) in tls {
            let bytes = fs::read(&from).map_err(ServerError::io("read", from))?;
            changed |= self.write(&self.private_dir().join(name), &bytes)?;
        }
        if let Some(upstream) = upstream {
            changed |= self.write(&self.passfile(), passfile_line(&upstream.user, &upstream.password).as_bytes())?;
        }
        Ok(changed)
    }

    fn all_settings(&self, upstream: Option<&Upstream>) -> Vec<Setting> {
        let private = self.private_dir();
        let path = |name: &str| private.join(name).display().to_string();
        let mut all = vec![
            Setting::new("listen_addresses", self.listen.join(","), ""),
            Setting::new("port", self.port.to_string(), ""),
            Setting::new("unix_socket_directories", "", "no sockets: every way in is TCP with TLS and SCRAM"),
            Setting::new("ssl", "on", "pg_hba.conf lets no one in without"),
            Setting::new("ssl_cert_file", path("server.crt"), ""),
            Setting::new("ssl_key_file", path("server.key"), ""),
            Setting::new("ssl_min_protocol_version", "TLSv1.2", ""),
            Setting::new("password_encryption", "scram-sha-256", "the server never learns or keeps a password"),
            Setting::new("lc_messages", "C", "the platform reads this server's messages"),
            Setting::new(
                "logging_collector",
                "off",
                "the supervisor appends what the server writes to one file, from its first line on",
            ),
            Setting::new("log_destination", "stderr", ""),
        ];
        all.extend(self.settings.iter().cloned());
        if let Some(upstream) = upstream {
            all.push(Setting::new(
                "primary_conninfo",
                self.conninfo(upstream),
                "the password stands in the file named, mode 0600; the upstream's certificate is checked",
            ));
            all.push(Setting::new(
                "primary_slot_name",
                &upstream.slot,
                "the upstream keeps log until it has arrived here",
            ));
        }
        all
    }

    /// What a replica would have too little of to start.
    fn no_less_than(&self, of_primary: [u32; 5]) -> impl Iterator<Item = Setting> {
        SHARED_SETTINGS.into_iter().zip(of_primary).filter_map(|((name, default), least)| {
            let own = self.settings.iter().rev().find(|setting| setting.name.eq_ignore_ascii_case(name));
            let own = own.map_or(Some(default), |setting| setting.value.parse().ok())?;
            let why = "the primary still has so many, and a replica starts with no less";
            (own < least).then(|| Setting::new(name, least.to_string(), why))
        })
    }

    /// How to reach the upstream: a connection string without a secret.
    pub(crate) fn conninfo(&self, upstream: &Upstream) -> String {
        self.conninfo_of(&upstream.host, upstream.port, &upstream.user, &upstream.application_name, &self.passfile())
    }

    pub(crate) fn conninfo_of(&self, host: &str, port: u16, user: &str, program: &str, passfile: &Path) -> String {
        let quote = settings::quote_conninfo;
        format!(
            "host={} port={} user={} application_name={} passfile={} sslmode=verify-full sslrootcert={} \
             connect_timeout=5 keepalives_idle=10 keepalives_interval=5 keepalives_count=3",
            quote(host),
            port,
            quote(user),
            quote(program),
            quote(&passfile.display().to_string()),
            quote(&self.private_dir().join("ca.crt").display().to_string()),
        )
    }

    fn passfile(&self) -> PathBuf {
        self.private_dir().join("upstream.pgpass")
    }

    /// Makes the folder and its private part, owned by the unprivileged user.
    ///
    /// # Errors
    /// If they cannot be made, or are somebody else's.
    pub fn prepare_folder(&self) -> Result<(), ServerError> {
        if self.folder.exists() {
            self.run_as.check_owner(&self.folder)?;
        }
        self.run_as.check_reachable(&self.folder)?;
        for folder in [self.folder.clone(), self.private_dir()] {
            match fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => self.run_as.own(&folder)?,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => self.run_as.check_owner(&folder)?,
                Err(error) => return Err(ServerError::io("make", folder)(error)),
            }
        }
        Ok(())
    }

    /// The finished `data.incoming` becomes the data directory.
    pub(crate) fn settle(&self) -> Result<(), ServerError> {
        let (incoming, data) = (self.incoming_dir(), self.data_dir());
        fs::rename(&incoming, &data).map_err(ServerError::io("rename", incoming))?;
        fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(ServerError::io("sync", &self.folder))
    }

    /// Writes a file of mode 0600 for the unprivileged user, if it is not so already.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<bool, ServerError> {
        if fs::read(path).is_ok_and(|now| now == bytes) {
            return Ok(false);
        }
        files::write_atomic(path, bytes, 0o600).map_err(ServerError::io("write", path))?;
        self.run_as.own(path)?;
        Ok(true)
    }

    /// A secret for one program, removed when dropped.
    pub(crate) fn private_file(&self, name: &str, text: &str) -> Result<TemporaryFile, ServerError> {
        let path = self.private_dir().join(name);
        self.write(&path, text.as_bytes())?;
        Ok(TemporaryFile(path))
    }

    /// A program of the installation, as the unprivileged user, in the node's folder, with an
    /// environment of its own: nothing of ours leaks into it.
    pub(crate) fn command(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.binaries.program(program));
        self.run_as.apply(&mut command);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }
}

/// `host:port:database:user:password`, colons and backslashes escaped (manual, "The Password File").
pub(crate) fn passfile_line(user: &str, password: &Secret) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    format!("*:*:*:{}:{}\n", escape(user), escape(password.reveal()))
}

pub(crate) struct TemporaryFile(pub(crate) PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary password file");
        }
    }
}

/// Removes a folder with all in it; that it is not there is no error.
pub(crate) fn remove(folder: &Path) -> Result<(), ServerError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ServerError::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Runs a program to its end, and returns what it said on standard error; it is killed after `deadline` or when this
/// future is dropped.
pub(crate) async fn run(
    command: std::process::Command,
    program: &'static str,
    deadline: Duration,
) -> Result<String, ServerError> {
    let path = PathBuf::from(command.get_program());
    let folder = command.get_current_dir().map(Path::to_owned).unwrap_or_default();
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::time::timeout(deadline, command.output())
        .await
        .map_err(|_| ServerError::ProgramTimeout { program, deadline })?
        .map_err(ServerError::io("run", path))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(text.into_owned());
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.iter().any(|line| line.contains("No space left on device")) {
        return Err(ServerError::DiskFull { path: folder });
    }
    let output = lines.iter().skip(lines.len().saturating_sub(6)).map(|line| (*line).to_owned()).collect();
    Err(ServerError::Program { program, output })
}
