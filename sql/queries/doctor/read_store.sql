-- What the doctor asks of a store of ours. One row: license (NULL: none), user, unix seconds now, the first right that is
-- missing (NULL: none), frames in quarantine, machines that run and do not report.
SELECT
    current_setting('timescaledb.license', TRUE) AS "license",
    current_user::text AS "user",
    extract(EPOCH FROM clock_timestamp())::double precision AS "now",
    (
        SELECT wanted."right" || ' on "' || wanted."relation" || '"'
        FROM
            (
                VALUES
                ('SystemMetrics', 'INSERT'),
                ('ProcessSnapshot', 'INSERT'),
                ('PortUsage', 'INSERT'),
                ('IngestLedger', 'UPDATE'),
                ('QuarantinedFrame', 'INSERT'),
                ('Machine', 'SELECT')
            ) AS wanted ("relation", "right")
        WHERE NOT has_table_privilege(quote_ident(wanted."relation"), wanted."right")
        LIMIT 1
    ) AS "missing",
    (SELECT count(*) FROM "QuarantinedFrame") AS "quarantined",
    (SELECT count(*) FROM "MachineWithoutData") AS "silent";
