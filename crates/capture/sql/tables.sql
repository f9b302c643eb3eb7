-- The columns of some tables as the stream brings them (no generated, no dropped ones), with the
-- key: the replica identity's index, or the primary key where the identity is the whole row.
-- Locks: none. Privileges: none. Oldest version: 14.
SELECT n.nspname::text AS schema,
       c.relname::text AS name,
       c.oid,
       c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       c.relreplident::text AS identity,
       a.attname::text AS attribute,
       a.atttypid AS type_oid,
       a.atttypmod AS typmod,
       coalesce(a.attnum = ANY (k.indkey::int2[]), false) AS key
  FROM unnest($1::text[], $2::text[]) AS w (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  LEFT JOIN pg_catalog.pg_attribute a
         ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
  LEFT JOIN pg_catalog.pg_index k
         ON k.indrelid = c.oid AND k.indisvalid AND k.indimmediate
        AND CASE c.relreplident WHEN 'i' THEN k.indisreplident WHEN 'n' THEN false ELSE k.indisprimary END
 ORDER BY 1, 2, a.attnum
