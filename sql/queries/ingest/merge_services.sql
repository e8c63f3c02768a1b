-- Merges incoming_service into WindowsService and ServiceStateHistory. Two statements, no parameters.
-- Every change of state between two messages of a machine, the stored one included, becomes a row of history; the
-- first sight of a service makes none; rows that are not newer than what is stored are ignored.

-- All rows of these machines, always in one order: two daemons wait for each other and never deadlock, whatever the
-- other adds in between. The next statement then sees what it committed.
SELECT COUNT(*)
FROM (
    SELECT stored."id"
    FROM "WindowsService" AS stored
    WHERE stored."machineId" IN (SELECT incoming."machineId" FROM incoming_service AS incoming)
    ORDER BY stored."machineId", stored."serviceName"
    FOR UPDATE
) AS locked;

WITH fresh AS (
    SELECT
        incoming.*,
        LAG(incoming."currentState", 1, stored."currentState") OVER service_in_order AS "previousState"
    FROM incoming_service AS incoming
    LEFT JOIN "WindowsService" AS stored
        ON
            incoming."machineId" = stored."machineId"
            AND incoming."serviceName" = stored."serviceName"
    WHERE stored."lastSeen" IS NULL OR stored."lastSeen" < incoming."receivedAt"
    WINDOW service_in_order AS (
        PARTITION BY incoming."machineId", incoming."serviceName"
        ORDER BY incoming."receivedAt"
    )
),

transition AS (
    SELECT
        "machineId",
        "serviceName",
        "previousState",
        "currentState",
        "receivedAt"
    FROM fresh
    WHERE "previousState" <> "currentState"
),

newest AS (
    SELECT DISTINCT ON ("machineId", "serviceName")
        "machineId",
        "serviceName",
        "displayName",
        "startType",
        "serviceType",
        "currentState",
        "processId",
        "isDefaultService",
        "receivedAt"
    FROM fresh
    ORDER BY "machineId" ASC, "serviceName" ASC, "receivedAt" DESC
),

last_known AS (
    SELECT
        "machineId",
        "serviceName",
        MIN("receivedAt") AS "firstSeen",
        (ARRAY_AGG("description" ORDER BY "receivedAt" DESC) FILTER (WHERE "description" IS NOT NULL))[1]
            AS "description",
        (ARRAY_AGG("executablePath" ORDER BY "receivedAt" DESC) FILTER (WHERE "executablePath" IS NOT NULL))[1]
            AS "executablePath",
        (ARRAY_AGG("dependencies" ORDER BY "receivedAt" DESC) FILTER (WHERE "dependencies" IS NOT NULL))[1]
            AS "dependencies",
        COUNT(*) FILTER (WHERE "previousState" <> "currentState") AS "changeCount",
        MAX("receivedAt") FILTER (WHERE "previousState" <> "currentState") AS "lastChange"
    FROM fresh
    GROUP BY "machineId", "serviceName"
),

merged AS (
    INSERT INTO "WindowsService" AS stored (
        "machineId",
        "serviceName",
        "displayName",
        "description",
        "startType",
        "serviceType",
        "executablePath",
        "dependencies",
        "currentState",
        "processId",
        "lastStateChange",
        "stateChangeCount",
        "isDefaultService",
        "firstSeen",
        "lastSeen"
    )
    SELECT
        newest."machineId",
        newest."serviceName",
        newest."displayName",
        last_known."description",
        newest."startType",
        newest."serviceType",
        last_known."executablePath",
        last_known."dependencies",
        newest."currentState",
        newest."processId",
        last_known."lastChange",
        last_known."changeCount",
        newest."isDefaultService",
        last_known."firstSeen",
        newest."receivedAt"
    FROM newest
    INNER JOIN last_known
        ON newest."machineId" = last_known."machineId" AND newest."serviceName" = last_known."serviceName"
    ORDER BY newest."machineId", newest."serviceName"
    ON CONFLICT ("machineId", "serviceName") DO UPDATE
        SET
            "displayName" = excluded."displayName",
            "description" = COALESCE(excluded."description", stored."description"),
            "startType" = excluded."startType",
            "serviceType" = excluded."serviceType",
            "executablePath" = COALESCE(excluded."executablePath", stored."executablePath"),
            "dependencies" = COALESCE(excluded."dependencies", stored."dependencies"),
            "currentState" = excluded."currentState",
            "processId" = excluded."processId",
            "lastStateChange" = COALESCE(excluded."lastStateChange", stored."lastStateChange"),
            "stateChangeCount" = stored."stateChangeCount" + excluded."stateChangeCount",
            "isDefaultService" = excluded."isDefaultService",
            "lastSeen" = excluded."lastSeen"
        WHERE
        stored."lastSeen" < excluded."lastSeen"
        AND (
            excluded."stateChangeCount" > 0
            OR stored."lastSeen" < excluded."lastSeen" - INTERVAL '1 minute'
            OR (
                stored."displayName",
                stored."description",
                stored."startType",
                stored."serviceType",
                stored."executablePath",
                stored."dependencies",
                stored."processId",
                stored."isDefaultService"
            ) IS DISTINCT FROM (
                excluded."displayName",
                COALESCE(excluded."description", stored."description"),
                excluded."startType",
                excluded."serviceType",
                COALESCE(excluded."executablePath", stored."executablePath"),
                COALESCE(excluded."dependencies", stored."dependencies"),
                excluded."processId",
                excluded."isDefaultService"
            )
        )
    RETURNING stored."id", stored."machineId", stored."serviceName"
)

INSERT INTO "ServiceStateHistory" ("serviceId", "fromState", "toState", "reason", "timestamp")
SELECT
    merged."id",
    transition."previousState",
    transition."currentState",
    'automatic' AS "reason",
    transition."receivedAt"
FROM transition
INNER JOIN merged
    ON transition."machineId" = merged."machineId" AND transition."serviceName" = merged."serviceName"
ORDER BY merged."id", transition."receivedAt";
