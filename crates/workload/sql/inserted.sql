-- Rows that this transaction has inserted, by table.
-- Locks: none. Needs: nothing. Oldest version: PostgreSQL 14.
SELECT schemaname || '.' || relname AS table_name, n_tup_ins AS rows
FROM pg_catalog.pg_stat_xact_user_tables
WHERE n_tup_ins > 0 AND schemaname NOT LIKE 'pg\_temp%'
ORDER BY 1
