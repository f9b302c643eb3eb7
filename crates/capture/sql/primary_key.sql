-- The primary key's columns of a table whose replica identity is the whole row.
-- Locks: none. Privileges: none. Oldest version: 14.
SELECT a.attname::text
  FROM pg_catalog.pg_index k
  JOIN pg_catalog.pg_attribute a ON a.attrelid = k.indrelid AND a.attnum = ANY (k.indkey::int2[])
 WHERE k.indrelid = $1::oid AND k.indisprimary AND k.indisvalid
