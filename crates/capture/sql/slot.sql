-- The state of one slot. Locks: none. Privileges: none. Oldest version: 14.
SELECT plugin::text,
       slot_type,
       database::text,
       temporary,
       active,
       wal_status,
       confirmed_flush_lsn::text AS confirmed_flush
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name = $1
