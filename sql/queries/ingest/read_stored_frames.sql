-- Which of these frames the store holds already, as a sample or set aside: (machineId, frameDigest), in no order.
-- %(machine_ids)s: uuid[], %(digests)s: bigint[] of the same length; %(earliest)s, %(latest)s: timestamptz, the times
-- between which a sample is looked for, so that the planner leaves out all other chunks. LATERAL makes it one probe each.
WITH
wanted ("machineId", "digest") AS (
    SELECT *
    FROM UNNEST(%(machine_ids)s::uuid [], %(digests)s::bigint [])
),

stored ("machineId", "digest") AS (
    SELECT
        wanted."machineId",
        wanted."digest"
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT 1
        FROM "SystemMetrics" AS sample
        WHERE
            sample."machineId" = wanted."machineId"
            AND sample."frameDigest" = wanted."digest"
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
    wanted."machineId",
    wanted."digest"
FROM wanted
INNER JOIN "QuarantinedFrame" AS aside
    ON wanted."machineId" = aside."machineId" AND wanted."digest" = aside."frameDigest";
