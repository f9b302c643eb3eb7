-- Where a slot of a primary begins to keep log, and on which timeline of which cluster.
SELECT c.system_identifier::text AS system_id,
       substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS timeline,
       s.restart_lsn
FROM pg_replication_slots AS s, pg_control_system() AS c
WHERE s.slot_name = $1 AND s.restart_lsn IS NOT NULL
