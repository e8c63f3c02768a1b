-- Reads a quarantined frame; no row when it is gone. %(id)s: uuid.
-- id, machineId, receivedAt, seq, reason, detail, refusals, stored, attempts, frameDigest, payload.
SELECT
    "id",
    "machineId",
    "receivedAt",
    "seq",
    "reason",
    "detail",
    "refusals",
    "stored",
    "attempts",
    "frameDigest",
    "payload"
FROM "QuarantinedFrame"
WHERE "id" = %(id)s;
