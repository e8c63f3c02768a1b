-- Queries of this database with a mean time over %(mean_ms)s (float8, ms) and over ten calls, slowest first; requires
-- pg_stat_statements. Rows: kind, sentence.
SELECT
    'slow' AS "kind",
    'a query takes ' || round(statement.mean_exec_time) || ' ms on average over ' || statement.calls || ' calls: '
    || left(regexp_replace(statement.query, '\s+', ' ', 'g'), 120) AS "sentence"
FROM pg_stat_statements AS statement
INNER JOIN pg_catalog.pg_database AS here ON statement.dbid = here.oid
WHERE
    here.datname = current_database() AND statement.mean_exec_time > %(mean_ms)s AND statement.calls > 10
    -- Batches of roll-ups are long on purpose.
    AND statement.query !~ 'guestd_roll_up_'
ORDER BY statement.mean_exec_time DESC
LIMIT 10;
