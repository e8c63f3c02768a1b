-- When the samples of these frames are stored, of those that are: (machineId, frameDigest, timestamp), unordered.
-- %(machine_ids)s: uuid[], %(digests)s: bigint[] of the same length; %(earliest)s, %(latest)s: timestamptz, bounds of
-- the samples' times, so that the planner excludes all other chunks. LATERAL makes it one index probe per frame.
SELECT
    sought."machineId",
    sought."digest",
    found."timestamp"
FROM UNNEST(%(machine_ids)s::uuid [], %(digests)s::bigint []) AS sought ("machineId", "digest")
CROSS JOIN LATERAL (
    SELECT sample."timestamp"
    FROM "SystemMetrics" AS sample
    WHERE
        sample."machineId" = sought."machineId"
        AND sample."frameDigest" = sought."digest"
        AND sample."timestamp" BETWEEN %(earliest)s AND %(latest)s
    LIMIT 1
) AS found;
