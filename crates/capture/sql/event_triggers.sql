-- Tells capture of what changes the rows of a published table without a row in the log: a rewrite that leaves the
-- columns as they are, a column that comes with a value for every row, another text for the values of a type,
-- partitions that come and go, a table that was out of a publication and comes back. Each is a message in the
-- log, part of the transaction that makes the change, so capture reads it in the order of commits.
-- VACUUM FULL and CLUSTER raise no such event.
-- Locks: none that lasts. Privileges: superuser (event triggers). Oldest version: 14.
CREATE SCHEMA IF NOT EXISTS millrace;

-- One message for each published table that `relation` is, or is a partition of.
CREATE OR REPLACE FUNCTION millrace.tell(what text, relation oid, columns text[] DEFAULT '{}') RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_logical_emit_message(true, 'millrace.ddl',
               json_build_object('what', what, 'oid', published::int8, 'columns', columns)::text)
      FROM (SELECT DISTINCT r.prrelid FROM pg_publication_rel r
             WHERE r.prrelid = relation
                OR r.prrelid IN (SELECT a.relid FROM pg_partition_ancestors(relation::regclass) a)) AS t (published)
$$;

CREATE OR REPLACE FUNCTION millrace.on_table_rewrite() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- 2: a column came with a value, 4: a column changed its type; the others (persistence, access method)
    -- leave the values as they are
    IF pg_event_trigger_table_rewrite_reason() & 6 <> 0 THEN
        PERFORM millrace.tell('rewritten', pg_event_trigger_table_rewrite_oid());
    END IF;
END $$;

CREATE OR REPLACE FUNCTION millrace.on_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    command record;
    altered oid;
    statement text := coalesce(current_query(), '');
BEGIN
    FOR command IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        IF command.classid = 'pg_publication_rel'::regclass THEN
            PERFORM millrace.tell('published', prrelid) FROM pg_publication_rel WHERE oid = command.objid;
        ELSIF command.classid = 'pg_publication'::regclass AND tg_tag = 'CREATE PUBLICATION' THEN
            PERFORM millrace.tell('published', prrelid) FROM pg_publication_rel WHERE prpubid = command.objid;
        ELSIF tg_tag = 'ALTER TABLE' AND command.classid = 'pg_class'::regclass THEN
            -- rows from before such a column show its default, whatever becomes of the default later
            PERFORM millrace.tell('filled', command.objid, array_agg(attname::text))
               FROM pg_attribute
              WHERE attrelid = command.objid AND attnum > 0 AND atthasmissing AND NOT attisdropped
             HAVING count(*) > 0;
            -- rows come or go with a partition; a statement within a function is not seen here, so it counts
            IF EXISTS (SELECT FROM pg_class WHERE oid = command.objid AND relkind = 'p')
               AND (statement ~* '\m(attach|detach)\M' OR statement !~* '\malter\s+table\M') THEN
                PERFORM millrace.tell('partitions', command.objid);
            END IF;
        ELSIF tg_tag = 'ALTER TYPE' THEN
            altered := CASE command.classid
                WHEN 'pg_type'::regclass THEN command.objid
                WHEN 'pg_class'::regclass THEN (SELECT reltype FROM pg_class WHERE oid = command.objid)
            END;
            -- a further value of an enumeration changes nothing that is there
            IF (SELECT typtype <> 'e' FROM pg_type WHERE oid = altered)
               OR statement ~* '\mrename\s+value\M' OR statement !~* '\malter\s+type\M' THEN
                PERFORM millrace.tell('retyped', relation)
                   FROM (SELECT DISTINCT a.attrelid FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                          WHERE altered IN (t.oid, t.typelem, t.typbasetype) AND a.attnum > 0 AND NOT a.attisdropped
                        ) AS t (relation);
            END IF;
        END IF;
    END LOOP;
END $$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'millrace_table_rewrite') THEN
        CREATE EVENT TRIGGER millrace_table_rewrite ON table_rewrite EXECUTE FUNCTION millrace.on_table_rewrite();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'millrace_ddl') THEN
        CREATE EVENT TRIGGER millrace_ddl ON ddl_command_end
            WHEN TAG IN ('ALTER TABLE', 'ALTER TYPE', 'ALTER PUBLICATION', 'CREATE PUBLICATION')
            EXECUTE FUNCTION millrace.on_ddl();
    END IF;
    -- also in sessions that play changes back (session_replication_role = replica)
    ALTER EVENT TRIGGER millrace_table_rewrite ENABLE ALWAYS;
    ALTER EVENT TRIGGER millrace_ddl ENABLE ALWAYS;
END $$;
