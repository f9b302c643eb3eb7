-- Locks that are waited for, and those held on the same object.
-- Locks: none. Privileges: pg_monitor. Oldest version: 14.
SELECT
    held.pid,
    held.locktype AS lock_type,
    held.mode,
    held.granted,
    CASE WHEN held.relation IS NOT NULL AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        THEN held.relation::regclass::text END AS relation,
    (extract(epoch FROM clock_timestamp() - held.waitstart) * 1000)::int8 AS waiting_ms
FROM pg_locks held
WHERE NOT held.granted
    OR EXISTS (
        SELECT FROM pg_locks waiting
        WHERE NOT waiting.granted
            AND waiting.locktype = held.locktype
            AND waiting.database IS NOT DISTINCT FROM held.database
            AND waiting.relation IS NOT DISTINCT FROM held.relation
            AND waiting.page IS NOT DISTINCT FROM held.page
            AND waiting.tuple IS NOT DISTINCT FROM held.tuple
            AND waiting.transactionid IS NOT DISTINCT FROM held.transactionid
            AND waiting.virtualxid IS NOT DISTINCT FROM held.virtualxid
            AND waiting.classid IS NOT DISTINCT FROM held.classid
            AND waiting.objid IS NOT DISTINCT FROM held.objid
    )
ORDER BY held.granted DESC, held.pid
