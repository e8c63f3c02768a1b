-- Merges incoming_application into ApplicationUsage. Two statements, no parameters.
-- The newest row of a program wins, if it is newer than what is stored; a program that its machine's newest message
-- does not list becomes inactive; descriptive columns keep the last value that was known.

-- Lock all rows of these machines, always in one order, so that two daemons wait for each other and never deadlock.
-- All, and not only those that this message changes: the other daemon may commit more active rows before the next
-- statement, which then updates them too.
SELECT COUNT(*)
FROM (
    SELECT stored."id"
    FROM "ApplicationUsage" AS stored
    WHERE stored."machineId" IN (SELECT incoming."machineId" FROM incoming_application AS incoming)
    ORDER BY stored."machineId", stored."executablePath"
    FOR UPDATE
) AS locked;

WITH newest_message AS (
    SELECT
        "machineId",
        MAX("receivedAt") AS "receivedAt"
    FROM incoming_application
    GROUP BY "machineId"
),

newest_row AS (
    SELECT DISTINCT ON ("machineId", "executablePath")
        incoming."machineId",
        incoming."executablePath",
        incoming."applicationName",
        incoming."lastAccessTime",
        incoming."lastModifiedTime",
        incoming."accessCount",
        incoming."totalUsageMinutes",
        incoming."receivedAt",
        incoming."isActive" AND incoming."receivedAt" = newest_message."receivedAt" AS "isActive"
    FROM incoming_application AS incoming
    INNER JOIN newest_message ON incoming."machineId" = newest_message."machineId"
    ORDER BY incoming."machineId" ASC, incoming."executablePath" ASC, incoming."receivedAt" DESC
),

last_known AS (
    SELECT
        "machineId",
        "executablePath",
        MIN("receivedAt") AS "firstSeen",
        (ARRAY_AGG("version" ORDER BY "receivedAt" DESC) FILTER (WHERE "version" IS NOT NULL))[1] AS "version",
        (ARRAY_AGG("description" ORDER BY "receivedAt" DESC) FILTER (WHERE "description" IS NOT NULL))[1]
            AS "description",
        (ARRAY_AGG("publisher" ORDER BY "receivedAt" DESC) FILTER (WHERE "publisher" IS NOT NULL))[1]
            AS "publisher",
        (ARRAY_AGG("iconData" ORDER BY "receivedAt" DESC) FILTER (WHERE "iconData" IS NOT NULL))[1] AS "iconData",
        (ARRAY_AGG("iconFormat" ORDER BY "receivedAt" DESC) FILTER (WHERE "iconData" IS NOT NULL))[1]
            AS "iconFormat",
        (ARRAY_AGG("fileSize" ORDER BY "receivedAt" DESC) FILTER (WHERE "fileSize" IS NOT NULL))[1] AS "fileSize"
    FROM incoming_application
    GROUP BY "machineId", "executablePath"
),

merged AS (
    INSERT INTO "ApplicationUsage" AS stored (
        "machineId",
        "executablePath",
        "applicationName",
        "version",
        "description",
        "publisher",
        "lastAccessTime",
        "lastModifiedTime",
        "accessCount",
        "totalUsageMinutes",
        "iconData",
        "iconFormat",
        "fileSize",
        "firstSeen",
        "lastSeen",
        "isActive"
    )
    SELECT
        newest_row."machineId",
        newest_row."executablePath",
        newest_row."applicationName",
        last_known."version",
        last_known."description",
        last_known."publisher",
        newest_row."lastAccessTime",
        newest_row."lastModifiedTime",
        newest_row."accessCount",
        newest_row."totalUsageMinutes",
        last_known."iconData",
        last_known."iconFormat",
        last_known."fileSize",
        last_known."firstSeen",
        newest_row."receivedAt",
        newest_row."isActive"
    FROM newest_row
    INNER JOIN last_known
        ON
            newest_row."machineId" = last_known."machineId"
            AND newest_row."executablePath" = last_known."executablePath"
    ORDER BY newest_row."machineId", newest_row."executablePath"
    ON CONFLICT ("machineId", "executablePath") DO UPDATE SET
        "applicationName" = excluded."applicationName",
        "version" = COALESCE(excluded."version", stored."version"),
        "description" = COALESCE(excluded."description", stored."description"),
        "publisher" = COALESCE(excluded."publisher", stored."publisher"),
        "lastAccessTime" = excluded."lastAccessTime",
        "lastModifiedTime" = excluded."lastModifiedTime",
        "accessCount" = excluded."accessCount",
        "totalUsageMinutes" = excluded."totalUsageMinutes",
        "iconData" = COALESCE(excluded."iconData", stored."iconData"),
        "iconFormat" = CASE WHEN excluded."iconData" IS NULL THEN stored."iconFormat" ELSE excluded."iconFormat" END,
        "fileSize" = COALESCE(excluded."fileSize", stored."fileSize"),
        "lastSeen" = excluded."lastSeen",
        "isActive" = excluded."isActive"
    WHERE
    stored."lastSeen" < excluded."lastSeen"
    AND (
        stored."lastSeen" < excluded."lastSeen" - INTERVAL '1 minute'
        OR (
            stored."applicationName",
            stored."version",
            stored."description",
            stored."publisher",
            stored."lastAccessTime",
            stored."lastModifiedTime",
            stored."accessCount",
            stored."totalUsageMinutes",
            stored."iconData",
            stored."fileSize",
            stored."isActive"
        ) IS DISTINCT FROM (
            excluded."applicationName",
            COALESCE(excluded."version", stored."version"),
            COALESCE(excluded."description", stored."description"),
            COALESCE(excluded."publisher", stored."publisher"),
            excluded."lastAccessTime",
            excluded."lastModifiedTime",
            excluded."accessCount",
            excluded."totalUsageMinutes",
            COALESCE(excluded."iconData", stored."iconData"),
            COALESCE(excluded."fileSize", stored."fileSize"),
            excluded."isActive"
        )
    )
)

UPDATE "ApplicationUsage" AS stored
SET "isActive" = FALSE
FROM newest_message
WHERE
    stored."machineId" = newest_message."machineId"
    AND stored."isActive"
    AND stored."lastSeen" < newest_message."receivedAt"
    AND NOT EXISTS (
        SELECT 1
        FROM incoming_application AS incoming
        WHERE
            incoming."machineId" = stored."machineId"
            AND incoming."executablePath" = stored."executablePath"
    );
