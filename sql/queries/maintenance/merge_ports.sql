-- Merges listening ports into VmPort, from the latest sample of each machine that reported within 10 minutes: existing
-- rows record whether any port of their range listens, and a port without a row gets a new one, not enabled. lastSeen
-- of ports that keep listening advances every 5 minutes. Ports of machines that are off do not listen.
WITH latest AS (
    SELECT
        machine."id" AS "machineId",
        sample."timestamp"
    FROM "Machine" AS machine
    INNER JOIN LATERAL (
        SELECT newest."timestamp"
        FROM "SystemMetrics" AS newest
        WHERE newest."machineId" = machine."id" AND newest."timestamp" > now() - INTERVAL '10 minutes'
        ORDER BY newest."timestamp" DESC
        LIMIT 1
    ) AS sample ON TRUE
    WHERE machine."status" NOT IN ('off', 'stopped')
),

listening AS (
    SELECT DISTINCT
        latest."machineId",
        latest."timestamp",
        reported."port",
        rtrim(lower(reported."protocol"), '6') AS "protocol"
    FROM latest
    INNER JOIN "PortUsage" AS reported
        ON latest."machineId" = reported."machineId" AND latest."timestamp" = reported."timestamp"
    WHERE reported."isListening" AND rtrim(lower(reported."protocol"), '6') IN ('tcp', 'udp')
),

known AS (
    SELECT
        port."id",
        latest."timestamp",
        count(listening."port") > 0 AS "running"
    FROM "VmPort" AS port
    INNER JOIN latest ON port."vmId" = latest."machineId"
    LEFT JOIN listening
        ON
            port."vmId" = listening."machineId"
            AND port."protocol" = listening."protocol"
            AND listening."port" BETWEEN port."portStart" AND port."portEnd"
    GROUP BY port."id", latest."timestamp"
),

changed AS (
    UPDATE "VmPort" AS port SET
        "running" = known."running",
        "lastSeen" = CASE WHEN known."running" THEN known."timestamp" ELSE port."lastSeen" END
    FROM known
    WHERE
        port."id" = known."id"
        AND (
            port."running" <> known."running"
            OR known."running" AND port."lastSeen" < known."timestamp" - INTERVAL '5 minutes'
        )
),

ended AS (
    UPDATE "VmPort" AS port SET "running" = FALSE
    FROM "Machine" AS machine
    WHERE port."vmId" = machine."id" AND port."running" AND machine."status" IN ('off', 'stopped')
)

INSERT INTO "VmPort" (
    "portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "vmId", "lastSeen"
)
SELECT
    listening."port" AS "portStart",
    listening."port" AS "portEnd",
    listening."protocol",
    TRUE,
    FALSE,
    FALSE,
    listening."machineId",
    listening."timestamp"
FROM listening
WHERE
    NOT EXISTS (
        SELECT 1 FROM "VmPort" AS port
        WHERE
            port."vmId" = listening."machineId"
            AND port."protocol" = listening."protocol"
            AND listening."port" BETWEEN port."portStart" AND port."portEnd"
    )
ON CONFLICT DO NOTHING;
