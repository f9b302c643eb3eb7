-- What a session keeps beyond the transaction that has just ended: settings ('s', name, value) and what cannot be moved
-- to another session ('p', what it is, ''). The proxy runs it as the client's role; it takes no lock. Names are
-- qualified, because search_path is the client's. {custom} stands for further settings by name, which pg_settings hides.
SELECT 's', name, setting FROM pg_catalog.pg_settings WHERE source = 'session'
UNION ALL
SELECT 's', 'role', pg_catalog.current_setting('role') WHERE pg_catalog.current_setting('role') <> 'none'
UNION ALL
SELECT 's', name, pg_catalog.current_setting(name, true)
FROM pg_catalog.unnest(ARRAY[{custom}]::pg_catalog.text[]) AS name
WHERE pg_catalog.current_setting(name, true) <> ''
UNION ALL
SELECT 'p', 'temporary table', '' WHERE EXISTS (
    SELECT FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind IN ('r', 'v', 'm', 'S', 'p'))
UNION ALL
SELECT 'p', 'LISTEN', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_listening_channels())
UNION ALL
SELECT 'p', 'PREPARE', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)
UNION ALL
SELECT 'p', 'cursor WITH HOLD', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)
UNION ALL
SELECT 'p', 'advisory lock', '' WHERE EXISTS (
    SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())
UNION ALL
SELECT 'p', 'SESSION AUTHORIZATION', '' WHERE session_user <> {login}
