-- trim_quarantine
-- Deletes frames that are set aside beyond an age and a number, of which no machine has more than a tenth; the oldest
-- go first. %(keep_days)s, %(max_frames)s: integer. One row: how many were deleted, how many are left.
WITH ranked AS (
    SELECT
        "id",
        ROW_NUMBER() OVER (ORDER BY "createdAt" DESC, "id" ASC) AS place,
        ROW_NUMBER() OVER (PARTITION BY "machineId" ORDER BY "createdAt" DESC, "id" ASC) AS place_of_machine,
        "createdAt" < NOW() - MAKE_INTERVAL(days => %(keep_days)s) AS is_old
    FROM "QuarantinedFrame"
),

gone AS (
    DELETE FROM "QuarantinedFrame" AS aside
    USING ranked
    WHERE
        aside."id" = ranked."id"
        AND (
            ranked.is_old
            OR ranked.place > %(max_frames)s
            OR ranked.place_of_machine > GREATEST(1, %(max_frames)s / 10)
        )
    RETURNING aside."id"
)

SELECT
    (SELECT COUNT(*) FROM gone) AS dropped,
    (SELECT COUNT(*) FROM ranked) - (SELECT COUNT(*) FROM gone) AS held;
