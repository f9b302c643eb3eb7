-- What this server is and how far it has got.
-- Locks: none. Privileges: pg_monitor. Oldest version: 14.
-- The timeline of a primary is read from its current log file's name, since the control file's
-- is that of the last checkpoint; a replica's is the one it receives.
SELECT
    pg_is_in_recovery() AS in_recovery,
    (SELECT system_identifier FROM pg_control_system()) AS system_id,
    CASE WHEN pg_is_in_recovery() THEN
        coalesce((SELECT received_tli FROM pg_stat_wal_receiver),
                 (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)
                  FROM pg_control_checkpoint() c, pg_control_recovery() r))
    ELSE
        ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
    END AS timeline,
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn,
    -- a replica that was started has no such position until it has read all log of its own; if it has no upstream, its
    -- startup process tells by what it waits for
    coalesce(pg_last_wal_receive_lsn(),
             CASE WHEN EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
                               AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval'))
             THEN pg_last_wal_replay_lsn() END) AS received_lsn,
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 AS started_at,
    EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS streaming,
    pg_is_in_recovery() AND current_setting('primary_conninfo') = ''
        AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS deaf,
    (SELECT slot_name FROM pg_stat_wal_receiver) AS receiver_slot,
    current_setting('synchronous_standby_names') AS synchronous_standby_names,
    ARRAY(SELECT name FROM pg_settings WHERE pending_restart ORDER BY name) AS pending_restart
