//! Every key that a file of ours may have: its type, its default, its meaning.
//!
//! Invariant: these tables are the only list. The reader refuses what is not in them, takes the
//! defaults from them, and `docs/configuration.md` is printed from them.

/// What happens when a key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// An error.
    Required,
    /// Nothing is set.
    Nothing,
    /// This TOML value.
    Default(&'static str),
}

/// One key of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// For people: `text`, `integer`, `size`, …
    pub(crate) kind: &'static str,
    pub(crate) absent: Absent,
    pub(crate) about: &'static str,
}

/// One table of a file.
#[derive(Debug)]
pub(crate) struct Table {
    /// As it is written: `[capture]`, `[[cluster.nodes]]`; for the top of a file, its name.
    pub(crate) header: &'static str,
    pub(crate) about: &'static str,
    pub(crate) keys: &'static [Key],
}

const fn key(name: &'static str, kind: &'static str, absent: Absent, about: &'static str) -> Key {
    Key { name, kind, absent, about }
}

use Absent::{Default, Nothing, Required};

pub(crate) const ROOT: Table = Table {
    header: "millrace.toml",
    about: "One file describes one platform. Paths are relative to the file's folder.",
    keys: &[
        key("platform", "table", Required, "the platform itself"),
        key("postgres", "table", Nothing, "what holds for every PostgreSQL server"),
        key("cluster", "table", Nothing, "the PostgreSQL servers"),
        key(
            "etcd",
            "table",
            Nothing,
            "where the agents of nodes on many hosts meet; if absent, all nodes are on this host",
        ),
        key("pack", "table", Nothing, "the domain"),
        key("proxy", "table", Nothing, "the address of the databases for applications"),
        key("capture", "table", Nothing, "changes on their way to the warehouse"),
        key("warehouse", "table", Nothing, "the analytical database"),
        key("console", "table", Nothing, "the web pages"),
        key("backup", "table", Nothing, "backups and the log's archive; if absent, there are none"),
    ],
};

pub(crate) const PLATFORM: Table = Table {
    header: "[platform]",
    about: "The platform itself.",
    keys: &[
        key(
            "name",
            "text",
            Required,
            "shown in the console and in logs; lowercase letters, digits, `-` and `_`, at most 40",
        ),
        key(
            "data_dir",
            "folder",
            Default("\"data\""),
            "where servers and the warehouse keep their data; it must be reachable for `user`",
        ),
        key(
            "user",
            "text",
            Default("\"postgres\""),
            "the unprivileged account that runs the servers when the platform is started by root",
        ),
    ],
};

pub(crate) const POSTGRES: Table = Table {
    header: "[postgres]",
    about: "What holds for every PostgreSQL server.",
    keys: &[
        key(
            "bin_dir",
            "folder",
            Nothing,
            "where `postgres` and `initdb` are; searched for in the usual places if absent",
        ),
        key(
            "settings",
            "table",
            Nothing,
            "more server settings, as in postgresql.conf; those that the platform's promises rest on are refused, with the reason",
        ),
    ],
};

pub(crate) const CLUSTER: Table = Table {
    header: "[cluster]",
    about: "The PostgreSQL servers: one primary and its replicas.",
    keys: &[
        key("listen", "address", Default("\"127.0.0.1\""), "the address that the servers listen on"),
        key(
            "failover",
            "boolean",
            Default("true"),
            "another primary is elected when the present one is lost; if false it is started again, however long that takes",
        ),
        key(
            "durability",
            "text",
            Default("\"quorum\""),
            "what a commit waits for: `quorum`, the disks of the primary and of `quorum` replicas; `asynchronous`, the primary's alone, and a failover may lose up to `loss_max`",
        ),
        key(
            "quorum",
            "integer",
            Default("1"),
            "replicas that must have a commit on disk, 1 to 8; all of them if there are fewer",
        ),
        key(
            "wait_for_replicas",
            "boolean",
            Default("false"),
            "if true, commits wait while fewer replicas than `quorum` are there; if false they go on without after 5 s, `status` says so, and no failover is made until replicas have caught up",
        ),
        key(
            "loss_max",
            "size",
            Default("\"1MiB\""),
            "log that a replica may lack and still be elected, with `asynchronous`",
        ),
        key(
            "silent_max_ms",
            "integer",
            Default("3000"),
            "a primary that has not answered for this long is killed and replaced, 1,000 to 600,000",
        ),
        key(
            "nodes",
            "array of tables",
            Nothing,
            "the servers; if absent, `a`, `b` and `c` on ports 5440, 5441 and 5442",
        ),
    ],
};

pub(crate) const NODE: Table = Table {
    header: "[[cluster.nodes]]",
    about: "One server. The first one listed starts as the primary.",
    keys: &[
        key(
            "name",
            "text",
            Required,
            "a lowercase letter, then letters, digits and `_`, at most 30; it names the server's folder and replication slot",
        ),
        key("port", "port", Required, "where the server listens"),
        key("host", "address", Nothing, "the host that it is on, with `[etcd]`: an address that the other hosts reach"),
        key(
            "failover_priority",
            "integer",
            Default("1"),
            "0 to 100; of replicas that have got equally far the greatest becomes the primary. 0: it never does, and commits do not wait for it",
        ),
        key(
            "apply_delay_seconds",
            "integer",
            Nothing,
            "it applies what it receives so much later, up to 30 days: a state from before a mistake to look at with `millrace psql NODE`. Its `failover_priority` is 0, and the proxy sends it no readers",
        ),
    ],
};

pub(crate) const ETCD: Table = Table {
    header: "[etcd]",
    about: "Where the agents of nodes on many hosts meet: `millrace agent NODE` runs on each host. See docs/many-hosts.md.",
    keys: &[
        key("endpoints", "array of texts", Required, "`https://host:port` of each member, tried in turn"),
        key("ca", "file", Nothing, "the authority of its servers' certificates; needed for https"),
        key("certificate", "file", Nothing, "this platform's certificate, if etcd asks for one"),
        key("key", "file", Nothing, "the key of `certificate`"),
        key("user", "text", Nothing, "a user of etcd; the password is `etcd` in secrets.toml"),
        key("prefix", "text", Nothing, "all keys begin with it; if absent, `/millrace/` and the platform's name"),
        key(
            "ttl_seconds",
            "integer",
            Default("3"),
            "a primary whose host is gone is replaced after this, 2 to 300; etcd refuses less than one and a half of its election timeouts",
        ),
        key(
            "api_port",
            "port",
            Default("8008"),
            "each agent answers here as Patroni does: `/primary`, `/replica`, `/health`, …",
        ),
    ],
};

pub(crate) const PACK_REFERENCE: Table = Table {
    header: "[pack]",
    about: "The domain: schema, models, reports and dashboards.",
    keys: &[key("path", "folder", Default("\"pack\""), "the pack's folder")],
};

pub(crate) const PROXY: Table = Table {
    header: "[proxy]",
    about: "The address of the databases for applications: it pools connections and follows the primary.",
    keys: &[
        key("listen", "address", Default("\"127.0.0.1\""), "the address for applications"),
        key("port", "port", Default("6432"), "the port of the primary, whichever node that is"),
        key("read_only_port", "port", Default("6433"), "the port of the replicas; of the primary while there is none"),
        key(
            "replica_lag_max",
            "size",
            Default("\"64MiB\""),
            "log that a replica may be behind before it gets no new work; it comes back at half of it",
        ),
        key(
            "route_reads",
            "boolean",
            Default("false"),
            "whether statements that only read go to replicas also from `port`; a client reads what it has written itself, and may not yet see what others wrote a moment ago",
        ),
        key("workers", "integer", Default("1"), "threads that serve clients, 1 to 64; one core serves most clusters"),
        key(
            "pool_mode",
            "text",
            Default("\"transaction\""),
            "when a connection goes to the next client: after each `transaction`, after each `statement`, or when the client leaves (`session`)",
        ),
        key("pool_size", "integer", Default("25"), "server connections of one database and user, 1 to 10000"),
        key("reserve_pool_size", "integer", Default("5"), "more of them once a client has waited long, 0 to 10000"),
        key("reserve_pool_timeout_ms", "integer", Default("5000"), "so long, in milliseconds, 0 to 3600000"),
        key("min_pool_size", "integer", Default("0"), "server connections kept open although unused, 0 to 10000"),
        key(
            "server_lifetime_s",
            "integer",
            Default("3600"),
            "a server connection is replaced after this, in seconds, 1 to 604800",
        ),
        key(
            "server_idle_timeout_s",
            "integer",
            Default("600"),
            "an unused one is closed after this, in seconds, 1 to 604800",
        ),
        key(
            "query_wait_timeout_s",
            "integer",
            Default("120"),
            "a statement waits for a server connection so long, in seconds, 1 to 3600",
        ),
        key(
            "max_prepared_statements",
            "integer",
            Default("200"),
            "prepared statements kept on one server connection, 1 to 10000",
        ),
        key("max_client_conn", "integer", Default("1000"), "clients at a time, 1 to 1000000; the next one is refused"),
        key("max_user_connections", "integer", Nothing, "clients of one user at a time"),
        key("max_db_connections", "integer", Nothing, "clients of one database at a time"),
        key("databases", "array of tables", Nothing, "databases for which something else holds"),
        key("users", "array of tables", Nothing, "users for whom something else holds"),
        key(
            "auth_query",
            "boolean",
            Default("false"),
            "whether roles that are not the pack's may log in, with the password that the primary has for them; superusers may not",
        ),
        key("require_tls", "boolean", Default("true"), "whether clients without TLS are refused"),
        key(
            "allow",
            "array of text",
            Default("[]"),
            "addresses that clients may come from, such as `\"10.0.0.0/8\"`; all if empty",
        ),
    ],
};

pub(crate) const PROXY_DATABASE: Table = Table {
    header: "[[proxy.databases]]",
    about: "What holds for one database; where it says nothing, `[proxy]` holds.",
    keys: &[
        key("name", "text", Required, "the database's name"),
        key("pool_mode", "text", Nothing, "as in `[proxy]`, as all that follow"),
        key("pool_size", "integer", Nothing, "server connections of one user, 1 to 10000"),
        key("reserve_pool_size", "integer", Nothing, "0 to 10000"),
        key("reserve_pool_timeout_ms", "integer", Nothing, "0 to 3600000"),
        key("min_pool_size", "integer", Nothing, "0 to 10000"),
        key("server_lifetime_s", "integer", Nothing, "1 to 604800"),
        key("server_idle_timeout_s", "integer", Nothing, "1 to 604800"),
        key("query_wait_timeout_s", "integer", Nothing, "1 to 3600"),
        key("max_prepared_statements", "integer", Nothing, "1 to 10000"),
        key("max_connections", "integer", Nothing, "its clients at a time, instead of `max_db_connections`"),
    ],
};

pub(crate) const PROXY_USER: Table = Table {
    header: "[[proxy.users]]",
    about: "What holds for one user.",
    keys: &[
        key("name", "text", Required, "the user's name"),
        key("max_connections", "integer", Required, "its clients at a time, instead of `max_user_connections`"),
    ],
};

pub(crate) const CAPTURE: Table = Table {
    header: "[capture]",
    about: "Changes on their way to the warehouse. A batch is one transaction there (the very first copy is two: its rows, then the models) and ends with the first limit it meets.",
    keys: &[
        key("batch_interval_ms", "integer", Default("1000"), "greatest age of a batch, in milliseconds, 10 to 3600000"),
        key("batch_rows_max", "integer", Default("50000"), "greatest number of changes in a batch, 1 to 10000000"),
        key("batch_bytes_max", "size", Default("\"64MiB\""), "greatest size of a batch, 1MiB to 4GiB"),
        key(
            "copy_workers",
            "integer",
            Default("2"),
            "connections that read tables side by side during the first copy, 1 to 64",
        ),
        key("publication", "text", Default("\"millrace\""), "the publication's name on the primary"),
        key("slot", "text", Default("\"millrace\""), "the replication slot's name on the primary"),
        key(
            "slot_retention_max",
            "size",
            Default("\"8GiB\""),
            "log that the primary keeps for a reader that lags; past it the slot is lost and the copy starts anew, but the primary's disk does not fill; at least 64MiB",
        ),
    ],
};

pub(crate) const WAREHOUSE: Table = Table {
    header: "[warehouse]",
    about: "The analytical database, read with PostgreSQL's protocol.",
    keys: &[
        key("engine", "text", Default("\"duckdb\""), "`duckdb`, embedded, is the one there is"),
        key("listen", "address", Default("\"127.0.0.1\""), "the address for readers"),
        key("port", "port", Default("5435"), "the port for readers"),
        key(
            "memory_limit",
            "size",
            Default("\"1GiB\""),
            "memory that the engine may use, at least 128MiB; what does not fit goes to disk",
        ),
        key("threads", "integer", Default("2"), "threads that the engine may use, 1 to 256"),
        key("max_connections", "integer", Default("100"), "readers at a time, 1 to 10000; the next one is refused"),
    ],
};

pub(crate) const CONSOLE: Table = Table {
    header: "[console]",
    about: "The web pages.",
    keys: &[
        key(
            "listen",
            "address",
            Default("\"127.0.0.1\""),
            "the address of the pages; 0.0.0.0 offers them to the network",
        ),
        key("port", "port", Default("8400"), "the port of the pages"),
    ],
};

pub(crate) const BACKUP: Table = Table {
    header: "[backup]",
    about: "Where backups and the log are kept, and when they are made. See docs/backup.md.",
    keys: &[
        key(
            "repository",
            "text",
            Required,
            "a folder, better on another disk, `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `gs://BUCKET/PREFIX`; the keys of S3 and Azure are in secrets.toml",
        ),
        key(
            "endpoint",
            "text",
            Nothing,
            "of what speaks S3 and is not AWS, or Azure's protocol and is not Azure: `https://host:port`, for Azure's with the account as its path",
        ),
        key("region", "text", Nothing, "of a bucket of S3; `us-east-1` if absent"),
        key("service_account", "text", Nothing, "for `gs://`: the JSON file with the key of a service account"),
        key("compression_level", "integer", Default("3"), "of zstd, 1 to 19"),
        key("threads", "integer", Default("2"), "that read, compress and encrypt, 1 to 64"),
        key("throttle", "size", Nothing, "a backup reads no more than this in a second"),
        key("full_every_hours", "integer", Default("168"), "between full backups, up to 8,760; 0: only by hand"),
        key(
            "incremental_every_hours",
            "integer",
            Default("24"),
            "between backups of what has changed since the one before, up to 8,760; 0: only by hand",
        ),
        key(
            "dump_every_hours",
            "integer",
            Default("0"),
            "between logical backups of all databases, up to 8,760; 0: only by hand",
        ),
        key(
            "replicas_from_backup",
            "boolean",
            Default("false"),
            "a replica is made from the newest backup and its log, which spares the primary; from the primary if that does not work, or the log since the backup is more than the data",
        ),
        key(
            "prove",
            "boolean",
            Default("true"),
            "the newest backup is restored beside the data, replayed and checked: one made by these times at once, one by hand ten minutes later; it needs as much room again",
        ),
        key(
            "prove_every_hours",
            "integer",
            Default("24"),
            "and again after so long, as long as it is the newest, up to 8,760; 0: once",
        ),
        key(
            "clone_base",
            "boolean",
            Default("false"),
            "such a proof leaves the backup's files where the file system can share blocks (xfs, btrfs), so that already the first `clone make` shares them; they stay, and need as much room as the data",
        ),
        key(
            "contents_seconds",
            "integer",
            Default("60"),
            "after a backup the rows of all tables are counted and digested on the primary, the small tables of each database first and for no longer than this, and a proof compares; up to 86,400; 0: never",
        ),
        key("keep_full", "integer", Default("2"), "so many full backups stay, with what builds on them, 1 to 1,000"),
        key("keep_daily", "integer", Default("0"), "the last backup of so many of the latest days (UTC) stays too"),
        key("keep_weekly", "integer", Default("0"), "of so many of the latest ISO weeks"),
        key("keep_monthly", "integer", Default("0"), "of so many of the latest months"),
        key("keep_yearly", "integer", Default("0"), "of so many of the latest years"),
        key("keep_dumps", "integer", Default("7"), "so many logical backups of each database stay; 0: all"),
        key(
            "window_days",
            "integer",
            Default("7"),
            "any point so far back can be restored, up to 3,650; 0: no promise",
        ),
        key("copies", "array of tables", Nothing, "other places that get the same: `[[backup.copies]]`"),
    ],
};

pub(crate) const BACKUP_COPY: Table = Table {
    header: "[[backup.copies]]",
    about: "Another folder or bucket that everything is written to at the same time; each is enough to restore from.",
    keys: &[
        key(
            "repository",
            "text",
            Required,
            "as in `[backup]`; for a bucket or container with keys of its own `[[s3]]` or `[[azure]]` in secrets.toml",
        ),
        key("endpoint", "text", Nothing, "as in `[backup]`"),
        key("region", "text", Nothing, "as in `[backup]`"),
        key("service_account", "text", Nothing, "as in `[backup]`"),
    ],
};

pub(crate) const S3_KEYS: Table = Table {
    header: "[[s3]]",
    about: "In secrets.toml: the keys of one bucket, where they are others than `s3_access_key` and `s3_secret_key`.",
    keys: &[
        key("bucket", "text", Required, "the bucket's name, as after `s3://`"),
        key("access_key", "text", Required, "the access key"),
        key("secret_key", "text", Required, "its secret"),
    ],
};

pub(crate) const AZURE_KEYS: Table = Table {
    header: "[[azure]]",
    about: "In secrets.toml: the account of one container, where it is another than `azure_account`.",
    keys: &[
        key("container", "text", Required, "the container's name, as after `az://`"),
        key("account", "text", Required, "the storage account"),
        key("key", "text", Required, "its access key"),
    ],
};

pub(crate) const SECRETS: Table = Table {
    header: "secrets.toml",
    about: "Passwords and keys, made by `millrace init`; the file must be closed to group and others (mode 0600).",
    keys: &[
        key("superuser", "text", Required, "password of `postgres` on every server"),
        key("replicator", "text", Required, "password of `replicator`, the replicas' role"),
        key("warehouse_reader", "text", Required, "password of `warehouse_reader` on the warehouse's port"),
        key("console_session_key", "text", Required, "signs the console's sessions; a new one ends them all"),
        key("etcd", "text", Nothing, "password of `[etcd] user`"),
        key(
            "backup_key",
            "text",
            Nothing,
            "opens the backups (age identities, one a line; the first is written for, `millrace backup new-key` adds one), the same on every host; made with the first backup if there is none. Keep a copy elsewhere",
        ),
        key("s3_access_key", "text", Nothing, "of buckets that `[[s3]]` does not name"),
        key("s3_secret_key", "text", Nothing, "of buckets that `[[s3]]` does not name"),
        key("s3", "array of tables", Nothing, "keys of single buckets: `[[s3]]`"),
        key("azure_account", "text", Nothing, "the storage account of containers that `[[azure]]` does not name"),
        key("azure_key", "text", Nothing, "its access key"),
        key("azure", "array of tables", Nothing, "accounts of single containers: `[[azure]]`"),
        key("roles", "table", Required, "role of the pack → password"),
    ],
};

pub(crate) const PACK: Table = Table {
    header: "pack.toml",
    about: "What a pack is called and which database it makes.",
    keys: &[
        key("name", "text", Required, "as in `millrace init --pack NAME`"),
        key("title", "text", Required, "shown in the console"),
        key("description", "text", Default("\"\""), "one sentence"),
        key("version", "text", Required, "of the pack"),
        key("database", "text", Required, "the database that is made on the primary"),
        key("schema", "text", Required, "the schema that its tables are in"),
        key("currency", "text", Nothing, "ISO 4217 code for columns of money, such as KES"),
        key("default_dashboard", "text", Nothing, "the dashboard opened first"),
        key("roles", "array of tables", Nothing, "the roles that its migrations grant rights to"),
    ],
};

pub(crate) const ROLE: Table = Table {
    header: "[[roles]]",
    about: "A role, made on the primary before the migrations run.",
    keys: &[
        key("name", "text", Required, "of the role"),
        key("login", "boolean", Default("false"), "whether it may connect; then a password is generated"),
        key("connect", "array of text", Default("[]"), "the databases that it may connect to"),
        key("description", "text", Default("\"\""), "what it is for"),
    ],
};

pub(crate) const DASHBOARD: Table = Table {
    header: "dashboards/*.toml",
    about: "A page of reports.",
    keys: &[
        key("title", "text", Required, "of the page"),
        key("description", "text", Default("\"\""), "one sentence"),
        key(
            "filters",
            "array of tables",
            Nothing,
            "parameters offered on top of the page; each tile takes those that its report has",
        ),
        key("tile", "array of tables", Required, "the reports, in reading order"),
    ],
};

pub(crate) const FILTER: Table = Table {
    header: "filters = [{ … }]",
    about: "A parameter offered on top of a dashboard.",
    keys: &[
        key("name", "text", Required, "the parameter's name in the reports"),
        key("type", "text", Default("\"text\""), "`text`, `integer`, `decimal` or `date`"),
        key("label", "text", Nothing, "shown; the name if absent"),
        key("choices", "text", Nothing, "a statement whose first column lists the values"),
        key("default", "text", Nothing, "used when the reader gives none"),
    ],
};

pub(crate) const TILE: Table = Table {
    header: "[[tile]]",
    about: "A report on a dashboard.",
    keys: &[
        key("report", "text", Required, "the report's name: its file without `.sql`"),
        key("width", "integer", Default("6"), "of 12 columns"),
        key("title", "text", Nothing, "instead of the report's own"),
    ],
};

/// Server settings that the platform keeps to itself, and why.
pub(crate) const RESERVED_SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "capture needs wal_level = logical"),
    ("port", "ports are set by [[cluster.nodes]] port"),
    ("listen_addresses", "the address is set by [cluster] listen"),
    ("unix_socket_directories", "the platform connects through a socket of its own"),
    ("unix_socket_permissions", "the platform connects through a socket of its own"),
    ("data_directory", "folders are set by [platform] data_dir"),
    ("config_file", "the platform writes the servers' configuration"),
    ("hba_file", "who may connect is decided by the platform and the pack's roles"),
    ("ident_file", "who may connect is decided by the platform and the pack's roles"),
    ("external_pid_file", "the platform watches the servers by their own pid file"),
    ("password_encryption", "every password is SCRAM-SHA-256"),
    ("ssl", "every connection over the network is encrypted"),
    ("ssl_cert_file", "certificates are the platform's own, in tls/"),
    ("ssl_key_file", "certificates are the platform's own, in tls/"),
    ("ssl_ca_file", "certificates are the platform's own, in tls/"),
    ("fsync", "an acknowledged commit must survive a crash"),
    ("full_page_writes", "an acknowledged commit must survive a crash"),
    ("wal_log_hints", "a former primary can be rewound only with it"),
    ("hot_standby", "replicas serve readers"),
    ("primary_conninfo", "the platform decides who follows whom"),
    ("primary_slot_name", "the platform decides who follows whom"),
    ("synchronous_standby_names", "the platform decides who follows whom"),
    ("restore_command", "the platform decides who follows whom"),
    ("recovery_target_timeline", "the platform decides who follows whom"),
    ("cluster_name", "names are set by [[cluster.nodes]] name"),
    ("max_slot_wal_keep_size", "it is set by [capture] slot_retention_max"),
    ("logging_collector", "the platform collects the servers' logs"),
    ("log_destination", "the platform collects the servers' logs"),
];

/// `docs/configuration.md`.
#[must_use]
pub fn reference() -> String {
    use std::fmt::Write as _;
    let mut page = String::from(
        "# Configuration\n\n\
         Printed from the tables that the program reads with (`crates/config/src/schema.rs`); a test keeps it current.\n\
         Anything that is not listed here is refused with file, line and a suggestion.\n\n\
         A *size* is a whole number with one of `B`, `KiB`, `MiB`, `GiB`, `TiB`: `\"64MiB\"`.\n\
         A *folder* is relative to the folder of `millrace.toml`, or absolute.\n\
         A *port* is 1024 to 65535, and no two are the same.\n",
    );
    let groups: [(&str, &[&Table]); 3] = [
        (
            "The platform: `millrace.toml`",
            &[
                &ROOT,
                &PLATFORM,
                &POSTGRES,
                &CLUSTER,
                &NODE,
                &ETCD,
                &PACK_REFERENCE,
                &PROXY,
                &PROXY_DATABASE,
                &PROXY_USER,
                &CAPTURE,
                &WAREHOUSE,
                &CONSOLE,
                &BACKUP,
                &BACKUP_COPY,
            ],
        ),
        ("Secrets: `secrets.toml`", &[&SECRETS, &S3_KEYS, &AZURE_KEYS]),
        ("Packs", &[&PACK, &ROLE, &DASHBOARD, &FILTER, &TILE]),
    ];
    for (title, tables) in groups {
        // writing to a String cannot fail
        let _infallible = write!(page, "\n## {title}\n");
        for table in tables {
            let _infallible = write!(page, "\n### `{}`\n\n{}\n\n", table.header, table.about);
            page.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
            for key in table.keys {
                let default = match key.absent {
                    Required => "required".to_owned(),
                    Nothing => "—".to_owned(),
                    Default(text) => format!("`{text}`"),
                };
                let _infallible = writeln!(page, "| `{}` | {} | {default} | {} |", key.name, key.kind, key.about);
            }
        }
    }
    page.push_str(
        "\n### `reports/*.sql`\n\n\
         One statement below a head of comments. `:name` in the statement is a parameter; a longer value goes on in the next\n\
         line, indented by three spaces or more.\n\n\
         | line | meaning |\n|---|---|\n",
    );
    for (line, meaning) in crate::pack::report::HEAD_REFERENCE {
        let _infallible = writeln!(page, "| `-- {line}` | {meaning} |");
    }
    page.push_str("\n## Settings of PostgreSQL that are the platform's\n\n| setting | why |\n|---|---|\n");
    for (name, why) in RESERVED_SETTINGS {
        let _infallible = writeln!(page, "| `{name}` | {why} |");
    }
    page
}
