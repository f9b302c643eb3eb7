-- Puts an empty transaction into the log, so that the stream brings a position soon. It changes
-- nothing. Locks: none. Privileges: none. Oldest version: 14.
SELECT pg_catalog.pg_logical_emit_message(true, 'millrace', '')
