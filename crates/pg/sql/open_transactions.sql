-- How many transactions clients have open, apart from the session that asks.
-- Locks: none. Privileges: pg_monitor. Oldest version: 14.
SELECT count(*)::int8 AS open
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
