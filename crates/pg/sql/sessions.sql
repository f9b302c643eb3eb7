-- Client sessions, the oldest transaction first, each with those that block it.
-- Locks: none. Privileges: pg_monitor (others see their own only). Oldest version: 14.
SELECT
    pid,
    datname AS database,
    usename AS role,
    application_name,
    host(client_addr) AS client_address,
    state,
    wait_event_type,
    wait_event,
    (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::int8 AS transaction_age_ms,
    (extract(epoch FROM clock_timestamp() - query_start) * 1000)::int8 AS statement_age_ms,
    left(query, 1000) AS statement,
    pg_blocking_pids(pid) AS blocked_by
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
ORDER BY xact_start NULLS LAST, pid
