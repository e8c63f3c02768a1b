-- A page of a machine's processes, in order of time and process id. %(machine_id)s: uuid, %(since)s and %(until)s:
-- timestamptz, %(most)s: integer, and the last row of the previous page: %(after_at)s: timestamptz, %(after_id)s:
-- integer.
SELECT
    "timestamp" AS "at",
    "processId" AS process_id,
    "name",
    "cpuUsagePercent" AS cpu_percent,
    "memoryUsageKB" AS memory_kb,
    "status",
    "commandLine" AS command_line
FROM "ProcessSnapshot"
WHERE
    "machineId" = %(machine_id)s
    AND "timestamp" >= %(since)s
    AND "timestamp" < %(until)s
    AND ("timestamp", "processId") > (%(after_at)s, %(after_id)s)
ORDER BY "timestamp" ASC, "processId" ASC
LIMIT %(most)s;
