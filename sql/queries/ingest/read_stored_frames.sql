-- The frames among these that are already stored as a sample or quarantined: (machineId, frameDigest), unordered.
-- %(machine_ids)s: uuid[], %(digests)s: bigint[] of the same length; %(earliest)s, %(latest)s: timestamptz, bounds of
-- the samples' times, so that the planner excludes all other chunks. LATERAL makes it one index probe per frame.
WITH
sought ("machineId", "digest") AS (
    SELECT *
    FROM UNNEST(%(machine_ids)s::uuid [], %(digests)s::bigint [])
),

stored ("machineId", "digest") AS (
    SELECT
        sought."machineId",
        sought."digest"
    FROM sought
    CROSS JOIN LATERAL (
        SELECT 1
        FROM "SystemMetrics" AS sample
        WHERE
            sample."machineId" = sought."machineId"
            AND sample."frameDigest" = sought."digest"
            AND sample."timestamp" BETWEEN %(earliest)s AND %(latest)s
        LIMIT 1
    ) AS found
)

SELECT
    "machineId",
    "digest"
FROM stored
UNION ALL
SELECT
    sought."machineId",
    sought."digest"
FROM sought
INNER JOIN "QuarantinedFrame" AS quarantined
    ON sought."machineId" = quarantined."machineId" AND sought."digest" = quarantined."frameDigest";
