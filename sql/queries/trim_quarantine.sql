-- trim_quarantine
-- Deletes frames that are set aside beyond an age and a number, of which no machine has more than a tenth; the oldest
-- go first. What a machine has beyond its tenth does not count against the others: it may be any number by the time we look.
-- %(keep_days)s, %(max_frames)s: integer. One row: how many were deleted, how many are left.
WITH ranked AS (
    SELECT
        "id",
        "createdAt",
        ROW_NUMBER() OVER (PARTITION BY "machineId" ORDER BY "createdAt" DESC, "id" ASC) AS place_of_machine
    FROM "QuarantinedFrame"
),

kept AS (
    SELECT "id"
    FROM ranked
    WHERE
        "createdAt" >= NOW() - MAKE_INTERVAL(days => %(keep_days)s)
        AND place_of_machine <= GREATEST(1, %(max_frames)s / 10)
    ORDER BY "createdAt" DESC, "id" ASC
    LIMIT %(max_frames)s
),

gone AS (
    DELETE FROM "QuarantinedFrame" AS aside
    WHERE
        NOT EXISTS (
            SELECT 1 FROM kept
            WHERE kept."id" = aside."id"
        )
    RETURNING aside."id"
)

SELECT
    (SELECT COUNT(*) FROM gone) AS dropped,
    (SELECT COUNT(*) FROM kept) AS held;
