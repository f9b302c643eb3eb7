-- What the server must be for capture. Locks: none. Privileges: none. Oldest version: 14.
SELECT current_setting('server_version_num')::int4 AS version,
       current_setting('wal_level') AS wal_level,
       pg_is_in_recovery() AS in_recovery
