-- The listening ports of a machine and their processes. %(machine_id)s: uuid. By port.
SELECT
    "timestamp" AS "at",
    "port",
    "protocol",
    "processId" AS process_id,
    "processName" AS process_name,
    "executablePath" AS executable_path
FROM "ListeningPort"
WHERE "machineId" = %(machine_id)s
ORDER BY "port", "protocol", "processId";
