-- Purpose: whether a replica has replayed up to a position. Locks: none. Privileges: none. Since: 10.
SELECT pg_last_wal_replay_lsn() >= $1 AS reached
