-- Purpose: the newest load runs. In the warehouse (DuckDB), read-only.
SELECT run_id, kind, status, epoch_us(started_at) AS started_micros,
       CAST(date_diff('millisecond', started_at, finished_at) AS BIGINT) AS duration_ms,
       rows_inserted, rows_updated, rows_deleted, watermark, error
FROM audit.etl_runs
ORDER BY run_id DESC
LIMIT $1
