-- The sessions that hold a lock, or wait for it in front, which another session waits for. %(pid)s: integer, the process of
-- the waiting session; NULL for every session of our programs in this database: those with their own application_name, or
-- the one that the connection string sets, %(application_name)s: text. Rows: text. Another role's transaction has a visible
-- start, and its session a visible wait, for members of pg_read_all_stats only. pg_blocking_pids stops all lock requests
-- for a moment, so it is computed for a session that waits for a lock alone.
SELECT DISTINCT
    CASE
        WHEN blocker.pid IS NULL THEN 'a prepared transaction (pg_prepared_xacts)'
        ELSE
            'session ' || blocker.pid || coalesce(' of ' || blocker.usename, '')
            || coalesce(' (' || nullif(blocker.application_name, '') || ')', '')
            || coalesce(', in a transaction since ' || date_trunc('second', blocker.xact_start), '')
    END AS "session"
FROM pg_catalog.pg_stat_activity AS waiting
CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS held ("pid")
LEFT JOIN pg_catalog.pg_stat_activity AS blocker ON held."pid" = blocker.pid
WHERE
    waiting.wait_event_type = 'Lock'
    AND (
        waiting.pid = %(pid)s::integer
        OR (
            %(pid)s::integer IS NULL
            AND waiting.application_name IN ('guestd', 'gueststore', %(application_name)s::text)
            AND waiting.datname = current_database()
        )
    )
ORDER BY "session";
