-- the clients at the other ends of connections; terminating them takes the locks of their transactions back. One whose
-- commit waits for a replica is let be: ended, its commit would be seen without being anywhere else.
-- Found first, then ended: a function among the conditions could be called for whom the others leave out
WITH cut_off AS MATERIALIZED (
    SELECT pid, application_name, host(client_addr) AS address, client_port AS port
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND wait_event IS DISTINCT FROM 'SyncRep'
      AND (client_addr, client_port) IN (SELECT address::inet, port FROM unnest($1::text[], $2::int[]) AS ends (address, port))
)
SELECT pid, application_name, address, port, pg_terminate_backend(pid) AS told
FROM cut_off
