-- Which (machineId, timestamp) pairs already have a sample: those rows, in no order.
-- %(machine_ids)s: uuid[], %(timestamps)s: timestamptz[] of the same length, in whole milliseconds.
-- The bounds let the planner leave out every chunk that no pair can be in; LATERAL makes it one probe per pair.
SELECT
    wanted."machineId",
    wanted."timestamp"
FROM UNNEST(%(machine_ids)s::uuid [], %(timestamps)s::timestamptz []) AS wanted ("machineId", "timestamp")
CROSS JOIN LATERAL (
    SELECT 1
    FROM "SystemMetrics" AS sample
    WHERE
        sample."machineId" = wanted."machineId"
        AND sample."timestamp" = wanted."timestamp"
        AND sample."timestamp" >= (SELECT MIN(bound) FROM UNNEST(%(timestamps)s::timestamptz []) AS bound)
        AND sample."timestamp" <= (SELECT MAX(bound) FROM UNNEST(%(timestamps)s::timestamptz []) AS bound)
    LIMIT 1
) AS found;
