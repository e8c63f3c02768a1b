-- The rows of a batch's series whose key is already stored: ("table", "machine_id", "timestamp", "key" as text).
-- For each series machines: uuid[], times: timestamptz[], and keys: integer[] of processes and ports, text[] of
-- applications, all of one length. %(earliest)s, %(latest)s: timestamptz, bounds of all these times.
WITH
process ("machineId", "timestamp", "key") AS (
    SELECT *
    FROM UNNEST(%(process_machines)s::uuid [], %(process_times)s::timestamptz [], %(process_keys)s::integer [])
),

port ("machineId", "timestamp", "key") AS (
    SELECT *
    FROM UNNEST(%(port_machines)s::uuid [], %(port_times)s::timestamptz [], %(port_keys)s::integer [])
),

application ("machineId", "timestamp", "key") AS (
    SELECT *
    FROM UNNEST(%(application_machines)s::uuid [], %(application_times)s::timestamptz [], %(application_keys)s::text [])
)

SELECT
    'ProcessSnapshot' AS "table",
    process."machineId" AS "machine_id",
    process."timestamp",
    process."key"::text AS "key"
FROM process
INNER JOIN "ProcessSnapshot" AS stored
    ON
        process."machineId" = stored."machineId"
        AND process."timestamp" = stored."timestamp"
        AND process."key" = stored."processId"
WHERE stored."timestamp" BETWEEN %(earliest)s AND %(latest)s
UNION ALL
SELECT
    'PortUsage' AS "table",
    port."machineId" AS "machine_id",
    port."timestamp",
    port."key"::text AS "key"
FROM port
INNER JOIN "PortUsage" AS stored
    ON
        port."machineId" = stored."machineId"
        AND port."timestamp" = stored."timestamp"
        AND port."key" = stored."ordinal"
WHERE stored."timestamp" BETWEEN %(earliest)s AND %(latest)s
UNION ALL
SELECT
    'ApplicationUsageHistory' AS "table",
    application."machineId" AS "machine_id",
    application."timestamp",
    application."key"::text AS "key"
FROM application
INNER JOIN "ApplicationUsageHistory" AS stored
    ON
        application."machineId" = stored."machineId"
        AND application."timestamp" = stored."timestamp"
        AND application."key" = stored."executablePath"
WHERE stored."timestamp" BETWEEN %(earliest)s AND %(latest)s;
