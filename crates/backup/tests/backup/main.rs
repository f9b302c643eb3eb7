//! Backups of real servers. One program, because each takes long to link.
//!
//! What users of other tools complain of, and where it is tested that ours does not do so:
//!
//! - a full queue drops log and reports success (pgbackrest#2390, #2714): `unhappy::a_repository_that_is_away_is_waited_for`,
//!   `s3::a_bucket_that_is_away_is_waited_for`;
//! - restores of differences that are not whole (wal-g#1296, #1723): `chain`, `over`, `round_trip`, `contents`;
//! - gaps that nobody is told of (pgbackrest#1136): `unhappy::log_that_is_lost_is_a_gap_that_is_told`, `damage_gaps_and_keys`;
//! - log that is told to be lost and is there (wal-g#1390): `unhappy::over_a_switch_of_timelines_from_a_replica_and_expired`;
//! - small files are slow from buckets (pgbackrest#2782): `midst::thousands_of_small_files_are_few_requests`;
//! - log is fetched file by file (wal-g#892): `s3::a_file_of_the_log_is_found_among_thousands_without_listing_them`, and
//!   `wal_fetch` of the platform's tests;
//! - a repository must be empty for a new cluster (plugin-barman-cloud#350): `midst::two_clusters_in_one_repository`;
//! - copies archive to where the original does (pgbackrest#1908): the platform's tests of clones;
//! - retention goes by names, not by time and what rests on what (wal-g#636): `retention` in the crate itself.
#![allow(unreachable_pub, reason = "what the modules of a test share")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it expects")]

mod azure;
mod base;
mod chain;
mod common;
mod contents;
mod midst;
mod over;
mod resume;
mod round_trip;
mod s3;
mod several;
mod unhappy;
