-- The ports of a sample, each with its ordinal and what tells it from the others. %(machine_id)s: uuid, %(at)s: timestamptz.
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
