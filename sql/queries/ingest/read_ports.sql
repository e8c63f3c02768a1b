-- The stored ports of a sample, each with its ordinal and the columns that identify it.
-- %(machine_id)s: uuid, %(at)s: timestamptz.
SELECT
    "ordinal",
    "port",
    "protocol",
    "state",
    "processId",
    "processName",
    "executablePath",
    "isListening"
FROM "PortUsage"
WHERE "machineId" = %(machine_id)s AND "timestamp" = %(at)s;
