-- Purpose: what a backup must know of the server before it begins. Locks: none beyond AccessShareLock.
-- Privileges: superuser, or pg_read_all_settings and execute on pg_control_system and pg_control_checkpoint. Since: 14.
SELECT current_setting('server_version_num')::int AS version,
       (SELECT system_identifier FROM pg_control_system()) AS system_id,
       current_setting('data_checksums')::bool AS checksums,
       current_setting('wal_level') AS wal_level,
       current_setting('block_size')::int AS block_bytes,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'segment_size') AS file_blocks,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS wal_segment_bytes,
       current_setting('data_directory') AS data_directory,
       pg_is_in_recovery() AS in_recovery
