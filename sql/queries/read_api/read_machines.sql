-- Every machine with its latest sample; %(wanted)s: text or NULL: only that of this id, internalName or name. By name.
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
WHERE %(wanted)s::text IS NULL OR %(wanted)s::text IN ("id"::text, "internalName", "name")
ORDER BY "name", "id";
