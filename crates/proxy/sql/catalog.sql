-- What routing must know of a database: functions by name and whether none of them is volatile, tables with whether
-- replicas have their rows, views with their text, and whether anybody's transactions are serializable from the start.
-- Views' texts take ACCESS SHARE on the relations they name, so the caller sets lock_timeout; any role may ask.
SELECT 'f', p.proname, pg_catalog.bool_and(p.provolatile <> 'v' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_aggregate a, pg_catalog.pg_proc step
        WHERE a.aggfnoid = p.oid AND step.provolatile = 'v'
            AND step.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn))),
    NULL::text, NULL::text[]
FROM pg_catalog.pg_proc p
GROUP BY p.proname
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
UNION ALL
SELECT 's', '', NULL, NULL, NULL
WHERE pg_catalog.current_setting('default_transaction_isolation') = 'serializable' OR EXISTS (
    SELECT FROM pg_catalog.pg_db_role_setting r, pg_catalog.unnest(r.setconfig) AS made
    WHERE r.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))
        AND pg_catalog.lower(made) = 'default_transaction_isolation=serializable')
