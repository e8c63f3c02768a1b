-- The timestamp under which a frame's rows are stored; no row when none are. %(machine_id)s: uuid, %(received_at)s,
-- %(earliest)s, %(latest)s: timestamptz, the last two bounds of the search; %(digest)s: bigint or NULL.
SELECT "timestamp"
FROM "SystemMetrics"
WHERE
    "machineId" = %(machine_id)s
    AND "timestamp" BETWEEN %(earliest)s AND %(latest)s
    AND ("receivedAt" = %(received_at)s OR "frameDigest" = %(digest)s)
LIMIT 1;
