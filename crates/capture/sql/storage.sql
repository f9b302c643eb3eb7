-- Where the rows of a table lie: itself, or its leaf partitions. `moved` tells that a table was
-- rewritten or truncated after this transaction's snapshot was taken, so its old rows are gone.
-- Locks: none. Privileges: none. Oldest version: 14.
SELECT n.nspname::text AS schema,
       c.relname::text AS name,
       pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::int8 AS pages,
       c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid) AS moved
  FROM (SELECT $1::oid AS relid WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree($1::oid::regclass))
        UNION ALL
        SELECT t.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) t WHERE t.isleaf) l
  JOIN pg_catalog.pg_class c ON c.oid = l.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r'
