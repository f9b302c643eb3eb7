-- The tables named in a publication. Row filters and column lists exist from version 15 on, hence the jsonb.
-- Locks: none. Privileges: none. Oldest version: 14.
SELECT r.oid AS membership,
       n.nspname::text AS schema,
       c.relname::text AS name,
       (to_jsonb(r) ->> 'prqual') IS NOT NULL OR (to_jsonb(r) ->> 'prattrs') IS NOT NULL AS partial
  FROM pg_catalog.pg_publication p
  JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = $1
 ORDER BY 2, 3
