-- Who receives log from this server, and how far each has got.
-- Locks: none. Privileges: pg_monitor. Oldest version: 14.
SELECT
    pid,
    application_name,
    host(client_addr) AS client_address,
    usename AS role,
    state,
    sync_state,
    sent_lsn,
    write_lsn,
    flush_lsn,
    replay_lsn,
    (extract(epoch FROM replay_lag) * 1000)::int8 AS replay_lag_ms
FROM pg_stat_replication
ORDER BY application_name, pid
