-- Of some columns of a table: whether rows from before the column was added may have a value in it.
-- Locks: none. Privileges: none. Oldest version: 14.
SELECT a.attname::text AS name,
       a.atthasmissing OR a.atthasdef OR a.attidentity <> '' OR EXISTS (
           SELECT FROM pg_catalog.pg_attribute o
            WHERE o.attrelid = a.attrelid AND o.attname::text = ANY ($3::text[]) AND o.attnum > a.attnum
       ) AS filled
  FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = $1::oid AND a.attname::text = ANY ($2::text[])
