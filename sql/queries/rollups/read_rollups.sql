-- The progress of each roll-up. No parameters. Rows: relation, covered_until (timestamptz), waiting (number of pending
-- minutes or hours), oldest (timestamptz of those; NULL when none is pending).
SELECT
    rolled."relation",
    rolled."coveredUntil" AS covered_until,
    count(waits."bucket") AS waiting,
    min(waits."bucket") AS oldest
FROM "RollupState" AS rolled
LEFT JOIN "RollupPending" AS waits
    ON waits."unit" = CASE
        WHEN rolled."relation" IN ('SystemMetricsMinute', 'SystemFleetMinute') THEN 'minute'
        WHEN rolled."relation" = 'ProcessFleetHour' THEN 'fleet'
        ELSE 'hour'
    END
GROUP BY rolled."relation", rolled."coveredUntil"
ORDER BY rolled."relation";
