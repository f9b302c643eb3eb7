-- Types with their modifiers, domains followed down to what they are made of.
-- Locks: none. Privileges: none. Oldest version: 14.
WITH RECURSIVE wanted AS (
    SELECT place, oid, typmod FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS w (oid, typmod, place)
), step AS (
    SELECT w.place, t.oid, w.typmod, t.typtype, t.typbasetype, t.typtypmod, t.typname
      FROM wanted w JOIN pg_catalog.pg_type t ON t.oid = w.oid
    UNION ALL
    SELECT s.place, t.oid, s.typtypmod, t.typtype, t.typbasetype, t.typtypmod, t.typname
      FROM step s JOIN pg_catalog.pg_type t ON t.oid = s.typbasetype
     WHERE s.typtype = 'd'
)
SELECT pg_catalog.format_type(w.oid, w.typmod) AS declared,
       coalesce(s.oid, 0::oid) AS base,
       coalesce(s.typmod, -1) AS typmod,
       coalesce(s.typtype::text, '') AS kind,
       coalesce(s.typname::text, '') AS name
  FROM wanted w LEFT JOIN step s ON s.place = w.place AND s.typtype <> 'd'
 ORDER BY w.place
