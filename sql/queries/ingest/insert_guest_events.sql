-- Inserts events of guests from arrays of one length; events whose id is already stored are skipped.
INSERT INTO "GuestEvent" ("id", "machineId", "receivedAt", "type", "severity", "message", "detail")
SELECT
    incoming."id",
    incoming."machineId",
    incoming."receivedAt",
    incoming."type",
    incoming."severity",
    incoming."message",
    incoming."detail"::jsonb
FROM
    unnest(
        %(ids)s::uuid [],
        %(machine_ids)s::uuid [],
        %(received_ats)s::timestamptz [],
        %(types)s::text [],
        %(severities)s::text [],
        %(messages)s::text [],
        %(details)s::text []
    ) AS incoming ("id", "machineId", "receivedAt", "type", "severity", "message", "detail")
ON CONFLICT ("id") DO NOTHING;
