-- Merges incoming_service into WindowsService and ServiceStateHistory, after lock_services. %(history_per_day)s: integer,
-- the changes of a machine that become history within 24 hours. One row: the number of changes beyond it, which are
-- only counted in stateChangeCount.
-- Every change of state between two messages of a machine, the stored one included, becomes a row of history, the
-- earliest first; the first sight of a service makes none; rows that are not newer than what is stored are ignored.
-- What is derived is joined by one "key": the planner has no statistics of it, and may merge by the machine alone, which
-- compares every change of a machine with every service of it.
WITH fresh AS (
    SELECT
        incoming.*,
        incoming."machineId"::text || incoming."serviceName" AS "key",
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
        "key",
        "previousState",
        "currentState",
        "receivedAt",
        ROW_NUMBER() OVER (PARTITION BY "machineId" ORDER BY "receivedAt", "serviceName") AS "place"
    FROM fresh
    WHERE "previousState" <> "currentState"
),

allowance AS (
    SELECT
        changing."machineId",
        %(history_per_day)s - history."rows" AS "left"
    FROM (
        SELECT
            transition."machineId",
            MAX(transition."receivedAt") - INTERVAL '24 hours' AS "since"
        FROM transition
        GROUP BY transition."machineId"
    ) AS changing
    CROSS JOIN LATERAL (
        SELECT COUNT(*) AS "rows"
        FROM (
            SELECT 1
            FROM "WindowsService" AS service
            INNER JOIN "ServiceStateHistory" AS changed ON service."id" = changed."serviceId"
            WHERE service."machineId" = changing."machineId" AND changed."timestamp" > changing."since"
            LIMIT %(history_per_day)s
        ) AS counted
    ) AS history
),

newest AS (
    SELECT DISTINCT ON ("machineId", "serviceName")
        "key",
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
        "key",
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
    GROUP BY "key"
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
        ON newest."key" = last_known."key"
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
            "stateChangeCount"
            = LEAST(stored."stateChangeCount"::bigint + excluded."stateChangeCount", 2147483647),
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
    RETURNING
        stored."id",
        stored."machineId"::text || stored."serviceName" AS "key"
),

recorded AS (
    INSERT INTO "ServiceStateHistory" ("serviceId", "fromState", "toState", "reason", "timestamp")
    SELECT
        merged."id",
        transition."previousState",
        transition."currentState",
        'automatic' AS "reason",
        transition."receivedAt"
    FROM transition
    INNER JOIN allowance ON transition."machineId" = allowance."machineId"
    INNER JOIN merged ON transition."key" = merged."key"
    WHERE transition."place" <= allowance."left"
    ORDER BY merged."id", transition."receivedAt"
)

SELECT COUNT(*)
FROM transition
INNER JOIN allowance ON transition."machineId" = allowance."machineId"
WHERE transition."place" > allowance."left";
