-- known_frames
-- Which of these frames the store holds already, as a sample or set aside: (machineId, frameDigest), in no order.
-- %(machine_ids)s: uuid[], %(digests)s: bigint[] of the same length; %(earliest)s, %(latest)s: timestamptz, the times
-- between which a sample is looked for, so that the planner leaves out all other chunks.
SELECT
    wanted."machineId",
    wanted."digest"
FROM UNNEST(%(machine_ids)s::uuid [], %(digests)s::bigint []) AS wanted ("machineId", "digest")
CROSS JOIN LATERAL (
    SELECT 1
    FROM "SystemMetrics" AS sample
    WHERE
        sample."machineId" = wanted."machineId"
        AND sample."frameDigest" = wanted."digest"
        AND sample."timestamp" BETWEEN %(earliest)s AND %(latest)s
    LIMIT 1
) AS found
UNION ALL
SELECT
    wanted."machineId",
    wanted."digest"
FROM UNNEST(%(machine_ids)s::uuid [], %(digests)s::bigint []) AS wanted ("machineId", "digest")
INNER JOIN "QuarantinedFrame" AS aside
    ON wanted."machineId" = aside."machineId" AND wanted."digest" = aside."frameDigest";
