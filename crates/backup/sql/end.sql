-- Purpose: the end of a primary's log. Locks: none. Privileges: none. Since: 10.
SELECT pg_current_wal_lsn() AS lsn
