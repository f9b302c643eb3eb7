-- Ends the sessions that receive decoded changes.
-- Locks: none. Privileges: superuser. Oldest version: 14.
SELECT pg_terminate_backend(active_pid)
FROM pg_replication_slots
WHERE slot_type = 'logical' AND active_pid IS NOT NULL
