-- Purpose: the timeline on which replay of a backup that has just begun starts. Locks: none.
-- Privileges: execute on pg_control_checkpoint. Since: 14.
SELECT timeline_id FROM pg_control_checkpoint()
