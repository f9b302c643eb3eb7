//! Words of backups, copies and the log.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Make one now: what has changed since the newest, or everything if there is none
    Create {
        /// Everything
        #[arg(long)]
        full: bool,
    },
    /// What there is
    List,
    /// All that is known of one: what it holds, what it rests on, where it can be restored to, when it was proven
    Info {
        /// [default: the newest]
        backup: Option<String>,
    },
    /// Read the whole repository, and compare everything with its checksums
    Verify {
        /// Do not decrypt and unpack
        #[arg(long)]
        quick: bool,
    },
    /// Restore the newest beside the data, replay the log, compare what tables hold with what was counted after the backup,
    /// check every table and index, and remove it again
    Prove {
        /// Another one
        backup: Option<String>,
    },
    /// Let a backup stay, whatever the configuration keeps, with what it builds on and the log from it on
    Hold {
        /// Its label: millrace backup list
        backup: String,
    },
    /// Let it go again when the configuration does not keep it
    Release {
        /// Its label
        backup: String,
    },
    /// Remove what the configuration does not keep, with the log that nothing needs any more
    Expire {
        /// Only say it
        #[arg(long)]
        dry_run: bool,
    },
    /// Make another key: what is written from now on is read with it alone; those of before stay for what is older
    NewKey,
    /// Restore into a new folder; without --to it says what it would do, and which points can be reached
    Restore(RestoreTo),
    /// Bring one table of the past back beside the live one, in a schema of its own
    RestoreTable(RestoreTable),
    /// Bring one database of the past back beside the live ones, under a name of its own
    RestoreDatabase(RestoreDatabase),
    /// A logical backup of one database, and of the roles: pg_dump into the repository
    Dump(DumpArgs),
    /// What logical backups there are
    Dumps,
    /// Write a logical backup into a new folder, for pg_restore or psql
    Fetch {
        /// As `dumps` names it
        dump: String,
        /// A new folder, or an empty one
        #[arg(long)]
        to: PathBuf,
    },
    /// Load a logical backup into a new database of the running cluster
    Load(LoadArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// [default: the pack's]
    #[arg(long)]
    pub(crate) database: Option<String>,
    /// Only this schema; a pattern, and may be given several times
    #[arg(long)]
    pub(crate) schema: Vec<String>,
    /// Only this table; a pattern, and may be given several times
    #[arg(long)]
    pub(crate) table: Vec<String>,
    /// custom, plain or directory [default: custom; directory with --jobs]
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Tables at a time; needs room for the dump meanwhile
    #[arg(long, default_value_t = 1, value_parser = jobs)]
    pub(crate) jobs: usize,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// As `dumps` names it
    pub(crate) dump: String,
    /// The database that is made for it
    #[arg(long)]
    pub(crate) into: String,
    /// Tables at a time
    #[arg(long, default_value_t = 2, value_parser = jobs)]
    pub(crate) jobs: usize,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreDatabase {
    pub(crate) database: String,
    /// As of when: '10 minutes ago', 2026-11-22T10:00:00Z or a position of the log [default: the latest point]
    #[arg(long)]
    pub(crate) at: Option<String>,
    /// The database that is made for it [default: its name and _restored]
    #[arg(long)]
    pub(crate) into: Option<String>,
    /// Tables at a time
    #[arg(long, default_value_t = 2, value_parser = jobs)]
    pub(crate) jobs: usize,
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        Ok(_) | Err(_) => Err("a number from 1 to 64".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct RestoreTable {
    /// SCHEMA.TABLE; without a schema it is in public
    pub(crate) table: String,
    /// As of when: '10 minutes ago', 2026-11-22T10:00:00Z or a position of the log [default: the latest point]
    #[arg(long)]
    pub(crate) at: Option<String>,
    /// The schema that is made for it
    #[arg(long, default_value = "restored")]
    pub(crate) into: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CloneCommand {
    /// Restore the newest backup before a moment, replay the log up to it, and start a server on it
    Make(CloneMake),
    /// What copies there are, and the base that new ones share the blocks of
    List,
    /// Stop a copy and remove its files, or remove the base
    Remove {
        /// The copy's port, or `base`
        #[arg(value_name = "PORT|base", value_parser = copy)]
        which: Copied,
    },
}

/// What `clone remove` removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    Port(u16),
    Base,
}

fn copy(text: &str) -> Result<Copied, String> {
    match text {
        "base" => Ok(Copied::Base),
        port => port.parse().map(Copied::Port).map_err(|_| "the port of a copy, or `base`".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CloneMake {
    /// As of when: '10 minutes ago', 2026-11-22T10:00:00Z or a position of the log [default: the latest point]
    #[arg(long)]
    pub(crate) at: Option<String>,
    /// Where it listens, for this host alone [default: a free one]
    #[arg(long)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreTo {
    /// A folder that is not there yet, or empty
    #[arg(long, value_name = "FOLDER")]
    pub(crate) to: Option<PathBuf>,
    /// Over a stopped server's data directory of this cluster: files that are the same stay, all others go
    #[arg(long, requires = "to")]
    pub(crate) delta: bool,
    /// In the place of this platform's cluster, which must be stopped; what is there is kept aside
    #[arg(long, conflicts_with = "to")]
    pub(crate) in_place: bool,
    /// Do not ask before
    #[arg(long, requires = "in_place")]
    pub(crate) yes: bool,
    /// Which node of many hosts this one has: its data becomes the primary's [default: the only one whose data is here]
    #[arg(long, requires = "in_place")]
    pub(crate) node: Option<String>,
    /// Up to this time, such as 2026-11-22T10:00:00Z or '2 hours ago' [default: the latest point]
    #[arg(long, group = "target")]
    pub(crate) time: Option<String>,
    /// Up to this position of the log
    #[arg(long, group = "target")]
    pub(crate) lsn: Option<String>,
    /// Up to this transaction
    #[arg(long, group = "target")]
    pub(crate) xid: Option<u64>,
    /// Up to a point made by pg_create_restore_point
    #[arg(long, group = "target")]
    pub(crate) name: Option<String>,
    /// Stop before the target, not after it
    #[arg(long)]
    pub(crate) before: bool,
    /// From this backup [default: the newest from which the target can be reached]
    #[arg(long)]
    pub(crate) backup: Option<String>,
    /// Along this timeline [default: the newest]
    #[arg(long)]
    pub(crate) timeline: Option<u32>,
    /// Of which cluster, if the repository holds several and this platform has lost its own record
    #[arg(long)]
    pub(crate) system_id: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Timelines, ranges and gaps
    Status,
    /// Bring one file, and those after it beforehand, for a restore_command: millrace wal fetch %f %p
    Fetch(WalFetch),
}

#[derive(Debug, Args)]
pub(crate) struct WalFetch {
    /// A segment or a history file
    pub(crate) name: String,
    /// Where to
    pub(crate) to: PathBuf,
    /// So many segments after it are brought beforehand, by a process in the background; 0: none
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub(crate) ahead: u32,
    /// The folder in which they wait for this server [default: millrace-fetched, beside the file]
    #[arg(long, value_name = "DIR")]
    pub(crate) spool: Option<PathBuf>,
    /// Of which cluster [default: that of the data directory in which this runs, else of this platform's]
    #[arg(long)]
    pub(crate) system_id: Option<u64>,
    /// What brings them
    #[arg(long, hide = true, requires_all = ["spool", "system_id"])]
    pub(crate) background: bool,
}
