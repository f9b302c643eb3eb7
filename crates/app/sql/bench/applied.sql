-- Purpose: whether the subscription has applied a transaction that ends past POSITION.
-- Locks: none. Privileges: the superuser. Oldest version: PostgreSQL 14.
SELECT pg_replication_origin_progress('pg_' || oid, false) > 'POSITION'::pg_lsn
FROM pg_subscription
