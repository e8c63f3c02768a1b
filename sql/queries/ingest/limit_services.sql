-- Deletes from incoming_service the new services of a machine that would exceed %(most)s: integer, the limit per
-- machine. Known services are always kept. Rows affected: the number deleted.
WITH new AS (
    SELECT DISTINCT
        incoming."machineId",
        incoming."serviceName"
    FROM incoming_service AS incoming
    WHERE NOT EXISTS (
        SELECT 1
        FROM "WindowsService" AS stored
        WHERE incoming."machineId" = stored."machineId" AND incoming."serviceName" = stored."serviceName"
    )
),

there AS (
    SELECT
        stored."machineId",
        COUNT(*) AS "services"
    FROM "WindowsService" AS stored
    WHERE stored."machineId" IN (SELECT new."machineId" FROM new)
    GROUP BY stored."machineId"
),

placed AS (
    SELECT
        new."machineId",
        new."serviceName",
        COALESCE(there."services", 0)
        + ROW_NUMBER() OVER (PARTITION BY new."machineId" ORDER BY new."serviceName") AS "place"
    FROM new
    LEFT JOIN there ON new."machineId" = there."machineId"
)

DELETE FROM incoming_service AS incoming
USING placed
WHERE
    incoming."machineId" = placed."machineId"
    AND incoming."serviceName" = placed."serviceName"
    AND placed."place" > %(most)s;
