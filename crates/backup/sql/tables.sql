-- Purpose: the tables whose rows are logged, the small ones first, each with what changes when its rows read otherwise without
-- having been changed: its file (a truncation, a rewriting), its columns with types and dropped ones. System catalogs are not
-- among them; large objects are, if there are any. Locks: none beyond AccessShareLock. Privileges: none. Since: 12.
SELECT format('%I.%I', n.nspname, c.relname) AS name,
       c.oid,
       c.relfilenode AS file,
       coalesce((SELECT string_agg(format('%s %s %s %s', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum)
                 FROM pg_catalog.pg_attribute AS a
                 WHERE a.attrelid = c.oid AND a.attnum > 0), '') AS columns
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm')
  AND c.relpersistence = 'p'
  AND c.relispopulated
  AND (n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
       OR c.oid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass
          AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata))
-- by what the catalog and the statistics say: `pg_relation_size` would wait for whoever has locked the table
ORDER BY greatest(c.relpages, pg_catalog.pg_stat_get_live_tuples(c.oid) / 100), name
