-- The snapshots of logical decoding, which a slot needs to begin at its position.
-- Locks: none. Privileges: superuser. Oldest version: 14.
-- One that is removed meanwhile is left out.
SELECT name, bytes
FROM pg_ls_dir('pg_logical/snapshots') AS name,
    LATERAL pg_read_binary_file('pg_logical/snapshots/' || name, 0, 16777216, true) AS bytes
WHERE name LIKE '%.snap' AND bytes IS NOT NULL
