-- Merges listening ports into VmPort, from the latest sample of each machine that reported within 10 minutes: existing
-- rows record whether any port of their range listens, and a port without a row gets a new one, automatic and not
-- enabled, while fewer than %(most)s (integer) automatic rows of the machine listen. lastSeen of ports that keep
-- listening advances every 5 minutes. Ports of machines that are off do not listen. One row: the ports left out, of all
-- machines.
-- Ports of a machine are a multirange: one that is searched for each row costs a binary search, a join by BETWEEN as
-- many comparisons as the guest has ports.
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

listening AS MATERIALIZED (
    SELECT
        latest."machineId",
        latest."timestamp",
        reported."protocol",
        range_agg(int4range(reported."port", reported."port", '[]')) AS "ports"
    FROM latest
    CROSS JOIN
        LATERAL (
            SELECT
                usage."port",
                rtrim(lower(usage."protocol"), '6') AS "protocol"
            FROM "PortUsage" AS usage
            WHERE
                usage."machineId" = latest."machineId"
                AND usage."timestamp" = latest."timestamp"
                AND usage."timestamp" > now() - INTERVAL '10 minutes'
                AND usage."isListening"
            -- OFFSET 0 keeps the planner from joining the rows of all machines: machine by machine is an index scan each.
            OFFSET 0
        ) AS reported
    WHERE reported."protocol" IN ('tcp', 'udp')
    GROUP BY latest."machineId", latest."timestamp", reported."protocol"
),

known AS MATERIALIZED (
    SELECT
        port."id",
        port."vmId",
        port."isAutomatic",
        latest."timestamp",
        coalesce(listening."ports" && int4range(port."portStart", port."portEnd", '[]'), FALSE) AS "running"
    FROM "VmPort" AS port
    INNER JOIN latest ON port."vmId" = latest."machineId"
    LEFT JOIN listening ON port."vmId" = listening."machineId" AND port."protocol" = listening."protocol"
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
),

covered AS (
    SELECT
        port."vmId",
        port."protocol",
        range_agg(int4range(port."portStart", port."portEnd", '[]')) AS "ports"
    FROM "VmPort" AS port
    WHERE port."vmId" IN (SELECT listening."machineId" FROM listening)
    GROUP BY port."vmId", port."protocol"
),

new AS (
    SELECT
        listening."machineId",
        listening."timestamp",
        listening."protocol",
        generate_series(lower(range."bounds"), upper(range."bounds") - 1) AS "port"
    FROM listening
    LEFT JOIN covered ON listening."machineId" = covered."vmId" AND listening."protocol" = covered."protocol"
    CROSS JOIN LATERAL unnest(listening."ports" - coalesce(covered."ports", '{}')) AS range ("bounds")
),

placed AS (
    SELECT
        new.*,
        coalesce(there."ports", 0)
        + row_number() OVER (PARTITION BY new."machineId" ORDER BY new."port", new."protocol") AS "place"
    FROM new
    LEFT JOIN (
        SELECT
            known."vmId",
            count(*) AS "ports"
        FROM known
        WHERE known."isAutomatic" AND known."running"
        GROUP BY known."vmId"
    ) AS there ON new."machineId" = there."vmId"
),

added AS (
    INSERT INTO "VmPort" (
        "portStart", "portEnd", "protocol", "running", "enabled", "toEnable", "isAutomatic", "vmId", "lastSeen"
    )
    SELECT
        placed."port" AS "portStart",
        placed."port" AS "portEnd",
        placed."protocol",
        TRUE,
        FALSE,
        FALSE,
        TRUE,
        placed."machineId",
        placed."timestamp"
    FROM placed
    WHERE placed."place" <= %(most)s
    ON CONFLICT DO NOTHING
)

SELECT count(*)
FROM placed
WHERE placed."place" > %(most)s;
