-- Queries of this database that take over %(mean_ms)s (float8, ms) in the mean and were asked over ten times, the slowest
-- first; only where pg_stat_statements is. Rows: kind, sentence.
SELECT
    'slow' AS "kind",
    'a query takes ' || round(asked.mean_exec_time) || ' ms in the mean, asked ' || asked.calls || ' times: '
    || left(regexp_replace(asked.query, '\s+', ' ', 'g'), 120) AS "sentence"
FROM pg_stat_statements AS asked
INNER JOIN pg_catalog.pg_database AS here ON asked.dbid = here.oid
WHERE
    here.datname = current_database() AND asked.mean_exec_time > %(mean_ms)s AND asked.calls > 10
    -- A batch of roll-ups is as long as guestd lets it be.
    AND asked.query !~ 'guestd_roll_up_'
ORDER BY asked.mean_exec_time DESC
LIMIT 10;
