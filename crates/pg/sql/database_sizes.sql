-- Every database with its size.
-- Locks: none. Privileges: pg_monitor or CONNECT on each. Oldest version: 14.
SELECT datname AS name, pg_database_size(oid) AS size_bytes
FROM pg_database
WHERE datallowconn
ORDER BY datname
