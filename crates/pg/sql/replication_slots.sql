-- Every replication slot, with the log that is kept for it.
-- Locks: none. Privileges: pg_monitor. Oldest version: 14. Works on a primary and on a replica.
SELECT
    slot_name,
    slot_type,
    database,
    temporary,
    active,
    active_pid,
    restart_lsn,
    confirmed_flush_lsn,
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
        - restart_lsn)::int8 AS retained_bytes,
    safe_wal_size,
    wal_status
FROM pg_replication_slots
ORDER BY slot_name
