-- What routing must know of a database: functions by name and whether none of them is volatile, tables with whether
-- replicas have their rows, and views with their text. Takes no locks beyond those on the catalog; any role may ask.
SELECT 'f', proname, pg_catalog.bool_and(provolatile <> 'v'), NULL::text, NULL::text[]
FROM pg_catalog.pg_proc
GROUP BY proname
UNION ALL
SELECT 't', c.relname, c.relpersistence = 'p' AND c.relkind IN ('r', 'p', 'm'), NULL,
    (SELECT pg_catalog.array_agg(pg_catalog.pg_get_expr(p.polqual, p.polrelid))
     FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polqual IS NOT NULL)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'f', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
UNION ALL
SELECT 'v', c.relname, NULL, pg_catalog.pg_get_viewdef(c.oid), NULL
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
