-- Quarantined frames, newest first, without their bytes. %(reason)s: text or NULL for all, %(most)s: bigint.
-- id, machineId, receivedAt, reason, detail, stored, attempts, refused (rows, count), size_bytes.
SELECT
    "id",
    "machineId",
    "receivedAt",
    "reason",
    "detail",
    "stored",
    "attempts",
    JSONB_ARRAY_LENGTH("refusals") AS "refused",
    OCTET_LENGTH("payload") AS "size_bytes"
FROM "QuarantinedFrame"
WHERE %(reason)s::text IS NULL OR "reason" = %(reason)s
ORDER BY "receivedAt" DESC, "id" ASC
LIMIT %(most)s;
