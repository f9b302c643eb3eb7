-- Where the log ends on a primary, what is not yet written included; or up to where a replica has replayed it.
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn
