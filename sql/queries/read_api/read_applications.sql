-- A machine's applications. %(machine_id)s: uuid. By name.
SELECT
    "id",
    "applicationName" AS "name",
    "executablePath" AS executable_path,
    "lastAccessTime" AS last_access_at,
    "totalUsageMinutes" AS usage_minutes,
    "isUsed" AS is_used
FROM "ApplicationUse"
WHERE "machineId" = %(machine_id)s
ORDER BY "applicationName", "id";
