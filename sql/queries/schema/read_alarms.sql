-- The problems of a store that grow with age. Rows: kind, sentence. No parameters.
SELECT
    'encoding' AS "kind",
    'the database has the encoding ' || current_setting('server_encoding')
    || ' and cannot hold every text of a guest: create one with CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0'
    || ' and move the rows by pg_dump' AS "sentence"
WHERE current_setting('server_encoding') <> 'UTF8'
UNION ALL
SELECT
    'unvalidated' AS "kind",
    'constraint ' || conname || ' of ' || conrelid::regclass
    || ' was never validated and may have wrong rows: ALTER TABLE ... VALIDATE CONSTRAINT' AS "sentence"
FROM pg_catalog.pg_constraint
WHERE connamespace = 'public'::regnamespace AND NOT convalidated
UNION ALL
SELECT
    'retention' AS "kind",
    'hypertable ' || hypertable.hypertable_name
    || ' has no row in RetentionSetting and grows without limit: insert one with its keepDays' AS "sentence"
FROM timescaledb_information.hypertables AS hypertable
WHERE
    hypertable.hypertable_schema = 'public'
    AND hypertable.hypertable_name IN (
        'SystemMetrics', 'ProcessSnapshot', 'PortUsage', 'ApplicationUsageHistory', 'SystemMetricsMinute',
        'SystemMetricsHour', 'ProcessUsageHour', 'ApplicationUsageDay', 'ListeningPortDay', 'SystemFleetMinute',
        'ProcessFleetHour'
    )
    AND NOT EXISTS (
        SELECT 1 FROM "RetentionSetting" AS setting
        WHERE setting."relation" = hypertable.hypertable_name
    )
UNION ALL
SELECT
    'retention' AS "kind",
    'table ' || plain."relation"
    || ' has no row in RetentionSetting and grows without limit: insert one with its keepDays' AS "sentence"
FROM (VALUES ('VmPort'), ('WindowsService'), ('ServiceStateHistory')) AS plain ("relation")
WHERE
    NOT EXISTS (
        SELECT 1 FROM "RetentionSetting" AS setting
        WHERE setting."relation" = plain."relation"
    )
UNION ALL
SELECT
    'future' AS "kind",
    count(*) || ' chunks of ' || chunk.hypertable_name || ' lie in the future, up to ' || max(chunk.range_end)
    || ': check the clocks of guests and hosts' AS "sentence"
FROM timescaledb_information.chunks AS chunk
WHERE
    chunk.hypertable_schema = 'public'
    AND chunk.range_start > now() + greatest(INTERVAL '31 days', 2 * (chunk.range_end - chunk.range_start))
GROUP BY chunk.hypertable_name
UNION ALL
SELECT
    'past' AS "kind",
    count(*) || ' chunks of ' || chunk.hypertable_name
    || ' are over a week past their retention: see why with gueststore retention --dry-run' AS "sentence"
FROM timescaledb_information.chunks AS chunk
INNER JOIN "RetentionSetting" AS setting ON chunk.hypertable_name = setting."relation"
WHERE
    chunk.hypertable_schema = 'public'
    AND chunk.range_end < now() - make_interval(days => setting."keepDays" + 7)
GROUP BY chunk.hypertable_name
UNION ALL
SELECT
    'rollup' AS "kind",
    'roll-ups are behind: a ' || waits."unit" || ' of ' || min(waits."bucket")
    || ' is pending: check that a guestd runs and what it logs' AS "sentence"
FROM "RollupPending" AS waits
GROUP BY waits."unit"
HAVING
    min(waits."bucket") < (
        -- Late samples are pending for a while too; it is a problem only when no roll-up has run for hours.
        SELECT CASE WHEN max(state."updatedAt") < now() - INTERVAL '3 hours' THEN now() - INTERVAL '3 hours' END
        FROM "RollupState" AS state
    )
UNION ALL
SELECT
    'bloat' AS "kind",
    tables.relname || ' has ' || tables.n_dead_tup || ' dead rows beside ' || tables.n_live_tup
    || ': autovacuum does not keep up, VACUUM the table' AS "sentence"
FROM pg_catalog.pg_stat_user_tables AS tables
WHERE tables.n_dead_tup > 100000 AND tables.n_dead_tup > tables.n_live_tup
UNION ALL
SELECT
    'job' AS "kind",
    'job ' || failed.job_id || ' (' || failed.proc_name || ') failed ' || count(*) || ' times in a day: '
    || max(failed.err_message) AS "sentence"
FROM timescaledb_information.job_errors AS failed
WHERE
    failed.start_time > now() - INTERVAL '1 day'
    -- On the Apache edition built-in jobs fail for lack of the other licence, and guestd has no jobs there.
    AND current_setting('timescaledb.license', TRUE) = 'timescale'
GROUP BY failed.job_id, failed.proc_name
ORDER BY "kind" ASC, "sentence" ASC;
