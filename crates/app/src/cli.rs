//! The operator's words: one definition gives the parser, the help and the errors.

mod backup;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use backup::{
    BackupCommand, CloneCommand, CloneMake, Copied, DumpArgs, LoadArgs, RestoreDatabase, RestoreTable, RestoreTo,
    WalCommand, WalFetch,
};

/// Runs a company's data platform on PostgreSQL: from the committed row to the chart.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The platform's folder: the one with millrace.toml [default: this folder, else ./platform]
    #[arg(long, short = 'C', global = true, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Dies or fails at a named place; for tests of crash safety
    #[cfg(debug_assertions)]
    #[arg(long, global = true, hide = true, value_name = "NAME[=HITS]:abort|error")]
    pub(crate) failpoint: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a platform folder from a pack
    Init(Init),
    /// Check configuration, secrets and pack without starting anything
    Check,
    /// Start everything, or adopt what still runs
    Up(Up),
    /// Run one node of a cluster on many hosts: its server, its proxy and an API for load balancers
    Agent {
        /// The node that is on this host
        node: String,
    },
    /// Stop everything cleanly
    Down,
    /// One screen: nodes, lag, slots, watermark, last run, disk, what is wrong and what to do
    Status(Status),
    /// Show the newest log lines
    Logs(Logs),
    /// The platform's processes
    Ps,
    /// Exit 0 when nothing is wrong, 1 otherwise
    Health,
    /// Open psql on a node or on the warehouse
    Psql(Psql),
    /// Check every promise on the running platform, a line each
    Verify,
    /// Compare source and warehouse, table by table, exactly, under live load
    Prove,
    /// Copy one table anew and end its quarantine
    Resync {
        /// schema.table
        table: String,
    },
    /// Delete the platform's data, after asking
    Nuke {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Fill the database with data
    #[command(subcommand)]
    Load(Load),
    /// Act as live customers until stopped
    Simulate(Simulate),
    /// Who is the primary: see it, change it, what happened to it
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Backups: make, list, check, restore, remove
    Backup {
        /// Of several places this one alone, as if there were no other: as it is written in millrace.toml
        #[arg(long, global = true, value_name = "PLACE")]
        repository: Option<String>,
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// The log in the backup repository
    Wal {
        /// Of several places this one alone
        #[arg(long, global = true, value_name = "PLACE")]
        repository: Option<String>,
        #[command(subcommand)]
        command: WalCommand,
    },
    /// A look into the past: throw-away copies of the databases, beside the running cluster
    #[command(subcommand)]
    Clone(CloneCommand),
    /// The address of the databases for applications
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Database migrations
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// The warehouse's declarations
    #[command(subcommand)]
    Model(ModelCommand),
    /// The pack's reports
    #[command(subcommand)]
    Report(ReportCommand),
    /// People who may use the console
    #[command(subcommand)]
    User(UserCommand),
    /// Measure against the tools that this replaces, side by side
    Bench(Bench),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// A pack that comes with millrace, or a folder with one
    #[arg(long)]
    pub(crate) pack: String,
    /// The folder to make
    pub(crate) target: PathBuf,
    /// First of the ports to use instead of the usual ones (nodes, warehouse, console, proxy in a row)
    #[arg(long, value_name = "PORT")]
    pub(crate) base_port: Option<u16>,
    /// Where data goes [default: DIR/data, or /var/lib/millrace/… where DIR is closed to the servers' user]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A node on this host, by its address; given once for each host of a cluster on many
    #[arg(long, value_name = "ADDRESS", requires = "etcd")]
    pub(crate) host: Vec<std::net::IpAddr>,
    /// A member of etcd, where the agents of those hosts meet; may be repeated
    #[arg(long, value_name = "URL", requires = "host")]
    pub(crate) etcd: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Stay in the background
    #[arg(short = 'd', long)]
    pub(crate) detach: bool,
    /// Load sample data at scale 1 first if the database is empty
    #[arg(long)]
    pub(crate) sample: bool,
    /// With live customers at this rate of transactions a second
    #[arg(long, value_name = "RATE")]
    pub(crate) simulate: Option<f64>,
    /// Set the warehouse aside and copy everything anew; surrogate keys and type 2 history start over
    #[arg(long)]
    pub(crate) recopy: bool,
    /// What `--detach` starts
    #[arg(long, hide = true)]
    pub(crate) background: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Show again every two seconds
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// millrace, or a node's name [default: all]
    pub(crate) component: Option<String>,
    /// Newest lines of each
    #[arg(short = 'n', long, default_value_t = 30)]
    pub(crate) lines: usize,
    /// Go on showing new lines
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Psql {
    /// primary, replica1, replica2, …, a node's name, warehouse, or pgbouncer: the proxy's console
    #[arg(default_value = "primary")]
    pub(crate) target: String,
    /// Passed on to psql, after `--`
    #[arg(last = true)]
    pub(crate) arguments: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Load {
    /// Deterministic sample data: scale 1 is 2,000 customers and about 100,000 payments
    Sample {
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        scale: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// The PKDD'99 Czech bank files; payments are derived from the contracts
    Berka {
        /// The folder with fin_*.tsv
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// Transactions a second
    #[arg(long, default_value_t = 10.0)]
    pub(crate) rate: f64,
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Stop after so many seconds [default: when interrupted]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) seconds: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Nodes, roles, timelines, lag, and what is promised of commits
    Status,
    /// Make another node the primary, in order: clients wait for a moment, and nothing is lost
    Switchover {
        /// A replica [default: the one that has got furthest]
        #[arg(long)]
        to: Option<String>,
    },
    /// Make a replica the primary at once, even if commits are lost by it
    Failover {
        /// A replica
        #[arg(long)]
        to: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// No failover until resume; a crashed primary is started again
    Pause,
    /// Fail over by itself again
    Resume,
    /// Delete a replica's data and copy the primary anew
    Reinit {
        /// A replica
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Read the settings of servers and cluster in millrace.toml anew, and give every server what has changed
    Reload,
    /// Restart servers whose settings wait for it: replicas one after the other, then the primary, after a switchover
    Restart {
        /// This one alone, whether it waits for it or not; the primary stays the primary [default: those that wait]
        node: Option<String>,
        /// Every node
        #[arg(long, conflicts_with = "node")]
        all: bool,
    },
    /// Add a node: it is written to millrace.toml and made from a base backup of the primary, while the platform runs
    AddNode(AddNode),
    /// Remove a replica from millrace.toml and end its server, once no commit waits for it; its data stays
    RemoveNode {
        /// A replica
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Who was the primary, when, and why it changed
    History,
}

#[derive(Debug, Args)]
pub(crate) struct AddNode {
    /// Its name: lowercase letters, digits and _
    pub(crate) node: String,
    /// Where it is, if nodes are on many hosts: an address
    #[arg(long)]
    pub(crate) host: Option<std::net::IpAddr>,
    /// Of its server [default: the next one that is free; on another host the one of the others]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Of replicas that have got equally far the greatest is elected; 0: it never becomes the primary [default: 1]
    #[arg(long)]
    pub(crate) failover_priority: Option<u32>,
    /// It applies what it receives so many seconds later, and never becomes the primary
    #[arg(long, value_name = "SECONDS", conflicts_with = "failover_priority")]
    pub(crate) apply_delay: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// Pools: clients, connections, waits, rates
    Show,
    /// Hold back new transactions and wait until none runs
    Pause {
        /// A database [default: all]
        database: Option<String>,
    },
    /// Let transactions go on
    Resume {
        /// A database [default: all]
        database: Option<String>,
    },
    /// Replace the connections to servers, each when its transaction ends
    Reconnect {
        /// A database [default: all]
        database: Option<String>,
    },
    /// Read the settings of the proxy, passwords, roles and certificates again; clients stay
    Reload,
    /// End every connection of a database at once; who comes waits for resume
    Kill {
        /// A database [default: all]
        database: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrateCommand {
    /// What is applied and what is not
    Status,
    /// Apply what is not
    Up,
    /// Compare applied scripts with the pack's
    Validate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// What a changed declaration will do, before it is done
    Plan,
    /// Do what the plan says
    Build,
    /// Build every model anew from staging and raw
    Rebuild,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReportCommand {
    /// Names, titles and parameters
    List,
    /// Run one
    Run {
        name: String,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// A parameter: name=value, or name= for none instead of its default; may be repeated
        #[arg(short, long = "param", value_name = "NAME=VALUE")]
        params: Vec<String>,
        /// The greatest number of rows
        #[arg(long, default_value_t = 10_000)]
        limit: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Names
    List,
    /// A new user; the password is generated and printed once
    Add { name: String },
    /// A new generated password, printed once; ends the user's sessions
    ResetPassword { name: String },
    /// Remove a user
    Remove { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum)]
    pub(crate) name: BenchName,
    /// Rows of the largest table (capture, reports)
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) rows: u64,
    /// Of pgbench's tables, 16 MB each (backup)
    #[arg(long, default_value_t = 100)]
    pub(crate) scale: u32,
    #[command(flatten)]
    pub(crate) failover: FailoverBench,
}

/// What only `bench failover` reads.
#[derive(Debug, Args)]
#[command(next_help_heading = "Failover")]
pub(crate) struct FailoverBench {
    /// Rounds of each fault on our side; 0 runs Patroni alone, without figures
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Rounds of each fault with each of Patroni's settings, half a minute or more each; 0 leaves Patroni out
    #[arg(long, default_value_t = 2)]
    pub(crate) peer_rounds: usize,
    /// Ours as on many hosts: an agent for each node, and etcd; a dead or frozen host takes the agent along
    #[arg(long)]
    pub(crate) agents: bool,
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FAULT,…", default_values_t = Fault::USUAL)]
    pub(crate) faults: Vec<Fault>,
    /// Settings of Patroni, one cluster after another
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SETTINGS,…", default_values_t = [PeerSettings::Fastest, PeerSettings::Defaults])]
    pub(crate) peer_settings: Vec<PeerSettings>,
    /// The folder of the programs patroni and patronictl
    #[arg(long, value_name = "DIR")]
    pub(crate) patroni: Option<PathBuf>,
}

/// What befalls the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL for its PostgreSQL and, of Patroni, the node's agent: a dead host
    Killed,
    /// SIGKILL for the postmaster and all its children; the agent lives
    ServerKilled,
    /// SIGKILL for the postmaster alone
    Postmaster,
    /// SIGSTOP for its PostgreSQL and, of Patroni, the node's agent: a frozen host, thawed when writes are back
    Hung,
    /// SIGSTOP for the postmaster and all its children; the agent lives
    ServerHung,
    /// None: a planned switchover
    Switchover,
}

impl Fault {
    /// Without the frozen server whose agent lives: Patroni takes as long as for a frozen host.
    pub(crate) const USUAL: [Self; 5] =
        [Self::Killed, Self::ServerKilled, Self::Postmaster, Self::Hung, Self::Switchover];
}

/// How Patroni is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerSettings {
    /// The shortest times that it allows, asynchronous
    Fastest,
    /// As it comes, asynchronous
    Defaults,
    /// The shortest times, and quorum commit
    Quorum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchName {
    /// Backups, the log's archive and restores beside pgBackRest
    Backup,
    /// Initial copy, apply rate and freshness beside native logical replication
    Capture,
    /// The dashboard's reports beside PostgreSQL, and the time of one batch
    Reports,
    /// pgbench through the proxy beside PgBouncer
    Proxy,
    /// Time without writes after a fault beside Patroni, and what was lost
    Failover,
}
