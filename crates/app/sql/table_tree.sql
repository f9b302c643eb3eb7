-- Purpose: a table with its partitions, parents first, and for each the statements that free it of what ties it to other
-- tables: foreign keys and triggers of its own. Locks: AccessShareLock on catalogs. Privileges: none. Since: 11.
WITH RECURSIVE tree AS (
    SELECT c.oid, 0 AS level
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
    UNION ALL
    SELECT i.inhrelid, tree.level + 1
    FROM tree
    JOIN pg_inherits AS i ON i.inhparent = tree.oid
)
SELECT tree.oid::regclass::text AS name,
       ARRAY(
           SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', tree.oid::regclass, conname)
           FROM pg_constraint
           WHERE conrelid = tree.oid AND contype = 'f' AND conparentid = 0
       ) || ARRAY(
           SELECT format('DROP TRIGGER %I ON %s', tgname, tree.oid::regclass)
           FROM pg_trigger
           WHERE tgrelid = tree.oid AND NOT tgisinternal AND tgparentid = 0
       ) AS loosen
FROM tree
ORDER BY tree.level
