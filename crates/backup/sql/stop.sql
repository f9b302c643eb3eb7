-- Purpose: ends a backup. Locks: none; a primary switches to a new segment. The log's archive is not waited for: it is
-- ours, and the server does not know it. Privileges: superuser or execute on pg_backup_stop. Since: 15.
SELECT lsn, labelfile, spcmapfile, clock_timestamp() AS at FROM pg_backup_stop(wait_for_archive => false)
