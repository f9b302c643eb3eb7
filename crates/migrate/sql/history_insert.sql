-- One applied script, in the script's own transaction.
-- Locks: ROW EXCLUSIVE. Needs: INSERT on the history. Oldest version: PostgreSQL 14.
INSERT INTO public.flyway_schema_history
    (installed_rank, version, description, type, script, checksum, installed_by, execution_time, success)
SELECT coalesce(max(installed_rank), 0) + 1, $1, $2, 'SQL', $3, $4, $5, $6, true
FROM public.flyway_schema_history
