-- The facts that guestd doctor checks. One row: license (NULL: none), user, current Unix time in seconds, the first
-- missing privilege (NULL: none), number of quarantined frames, number of machines that run without reporting.
SELECT
    current_setting('timescaledb.license', TRUE) AS "license",
    current_user::text AS "user",
    extract(EPOCH FROM clock_timestamp())::double precision AS "now",
    (
        SELECT required."right" || ' on "' || required."relation" || '"'
        FROM
            (
                VALUES
                ('SystemMetrics', 'INSERT'),
                ('ProcessSnapshot', 'INSERT'),
                ('PortUsage', 'INSERT'),
                ('IngestLedger', 'UPDATE'),
                ('QuarantinedFrame', 'INSERT'),
                ('Machine', 'SELECT')
            ) AS required ("relation", "right")
        WHERE NOT has_table_privilege(quote_ident(required."relation"), required."right")
        LIMIT 1
    ) AS "missing",
    (SELECT count(*) FROM "QuarantinedFrame") AS "quarantined",
    (SELECT count(*) FROM "MachineWithoutData") AS "silent";
