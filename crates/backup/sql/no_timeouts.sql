-- Purpose: nothing ends this session but itself; `transaction_timeout` is there since 17. Locks: none. Privileges: none. Since: 9.6.
SELECT pg_catalog.set_config(name, '0', false)
FROM pg_catalog.pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')
