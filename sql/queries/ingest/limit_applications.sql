-- Deletes from incoming_application the new programs of a machine that would exceed %(most)s: integer, the limit per
-- machine. Known programs are always kept. Rows affected: the number deleted.
WITH new AS (
    SELECT DISTINCT
        incoming."machineId",
        incoming."executablePath"
    FROM incoming_application AS incoming
    WHERE NOT EXISTS (
        SELECT 1
        FROM "ApplicationUsage" AS stored
        WHERE incoming."machineId" = stored."machineId" AND incoming."executablePath" = stored."executablePath"
    )
),

there AS (
    SELECT
        stored."machineId",
        COUNT(*) AS "programs"
    FROM "ApplicationUsage" AS stored
    WHERE stored."machineId" IN (SELECT new."machineId" FROM new)
    GROUP BY stored."machineId"
),

placed AS (
    SELECT
        new."machineId",
        new."executablePath",
        COALESCE(there."programs", 0)
        + ROW_NUMBER() OVER (PARTITION BY new."machineId" ORDER BY new."executablePath") AS "place"
    FROM new
    LEFT JOIN there ON new."machineId" = there."machineId"
)

DELETE FROM incoming_application AS incoming
USING placed
WHERE
    incoming."machineId" = placed."machineId"
    AND incoming."executablePath" = placed."executablePath"
    AND placed."place" > %(most)s;
