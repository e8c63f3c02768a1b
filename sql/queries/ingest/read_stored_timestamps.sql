-- The (machineId, timestamp) pairs that already have a sample, unordered.
-- %(machine_ids)s: uuid[], %(timestamps)s: timestamptz[] of the same length, in whole milliseconds.
-- The bounds let the planner exclude chunks that cannot hold a pair; LATERAL makes it one index probe per pair.
SELECT
    sought."machineId",
    sought."timestamp"
FROM UNNEST(%(machine_ids)s::uuid [], %(timestamps)s::timestamptz []) AS sought ("machineId", "timestamp")
CROSS JOIN LATERAL (
    SELECT 1
    FROM "SystemMetrics" AS sample
    WHERE
        sample."machineId" = sought."machineId"
        AND sample."timestamp" = sought."timestamp"
        AND sample."timestamp" >= (SELECT MIN(bound) FROM UNNEST(%(timestamps)s::timestamptz []) AS bound)
        AND sample."timestamp" <= (SELECT MAX(bound) FROM UNNEST(%(timestamps)s::timestamptz []) AS bound)
    LIMIT 1
) AS found;
