-- Purpose: begins a backup; its session must stay open until stop.sql. Locks: none; waits for a checkpoint.
-- Privileges: superuser or execute on pg_backup_start. Since: 15 (before: pg_start_backup).
SELECT pg_backup_start($1, $2) AS lsn, clock_timestamp() AS at
