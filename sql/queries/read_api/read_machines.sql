-- Every machine with its latest sample; %(identifier)s: text or NULL: only those with this id, internalName or name. By
-- name.
SELECT
    "id",
    "name",
    "internalName" AS internal_name,
    "status",
    "timestamp" AS "at",
    "cpuUsagePercent" AS cpu_percent,
    "usedMemoryKB" AS used_memory_kb,
    "totalMemoryKB" AS total_memory_kb,
    "uptime" AS uptime_seconds
FROM "MachineLatest"
WHERE %(identifier)s::text IS NULL OR %(identifier)s::text IN ("id"::text, "internalName", "name")
ORDER BY "name", "id";
