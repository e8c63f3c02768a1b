-- The periods that could not be computed and wait to be tried again. No parameters. At most one row, of the newest: number
-- of all, unit, bucket (timestamptz), machine_id, error (a text with its SQLSTATE).
SELECT
    count(*) OVER () AS number,
    waits."unit",
    waits."bucket",
    waits."machineId" AS machine_id,
    waits."error"
FROM "RollupPending" AS waits
WHERE waits."retryAt" IS NOT NULL
ORDER BY waits."bucket" DESC, waits."machineId" DESC, waits."id" DESC
LIMIT 1;
