-- What was applied, oldest first.
-- Locks: ACCESS SHARE. Needs: SELECT on the history. Oldest version: PostgreSQL 14.
SELECT installed_rank, version, description, type, script, checksum,
       to_char(installed_on, 'YYYY-MM-DD HH24:MI:SS') AS installed_on, execution_time, success
FROM public.flyway_schema_history
ORDER BY installed_rank
