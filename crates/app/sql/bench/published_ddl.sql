-- Purpose: the published tables as statements: their columns, and their primary keys.
-- Locks: none that anyone waits for. Privileges: none. Oldest version: PostgreSQL 14.
SELECT format('CREATE TABLE %I.%I (%s)', p.schemaname, p.tablename,
              (SELECT string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                                        CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END), ', ' ORDER BY a.attnum)
               FROM pg_attribute a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)) AS make,
       format('ALTER TABLE %I.%I ADD %s', p.schemaname, p.tablename, pg_get_constraintdef(k.oid)) AS key
FROM pg_publication_tables p
JOIN pg_class c ON c.oid = format('%I.%I', p.schemaname, p.tablename)::regclass
JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
WHERE p.pubname = $1
ORDER BY c.oid
