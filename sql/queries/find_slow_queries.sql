-- Queries of this database that take over a second in the mean and were asked over ten times, the slowest first; only where
-- pg_stat_statements is. Rows: kind, sentence.
SELECT
    'slow' AS "kind",
    'a query takes ' || round(asked.mean_exec_time) || ' ms in the mean, asked ' || asked.calls || ' times: '
    || left(regexp_replace(asked.query, '\s+', ' ', 'g'), 120) AS "sentence"
FROM pg_stat_statements AS asked
INNER JOIN pg_catalog.pg_database AS here ON asked.dbid = here.oid
WHERE here.datname = current_database() AND asked.mean_exec_time > 1000 AND asked.calls > 10
ORDER BY asked.mean_exec_time DESC
LIMIT 10;
