-- Deletes frames that are set aside beyond an age, a number and a size, of which no machine has more than a tenth (but one
-- frame); the oldest go first. What a machine has beyond its tenth does not count against the others: it may be any number
-- by the time we look.
-- %(keep_days)s, %(max_frames)s: integer; %(max_bytes)s: bigint. One row: how many were deleted, how many are left.
WITH ranked AS (
    SELECT
        "id",
        "createdAt",
        OCTET_LENGTH("payload") AS size_bytes,
        ROW_NUMBER() OVER of_machine AS place_of_machine,
        SUM(OCTET_LENGTH("payload")) OVER of_machine AS bytes_of_machine
    FROM "QuarantinedFrame"
    WINDOW of_machine AS (PARTITION BY "machineId" ORDER BY "createdAt" DESC, "id" ASC)
),

fair AS (
    SELECT
        "id",
        "createdAt",
        SUM(size_bytes) OVER (ORDER BY "createdAt" DESC, "id" ASC) AS bytes_of_all
    FROM ranked
    WHERE
        "createdAt" >= NOW() - MAKE_INTERVAL(days => %(keep_days)s)
        AND place_of_machine <= GREATEST(1, %(max_frames)s / 10)
        AND (place_of_machine = 1 OR bytes_of_machine <= %(max_bytes)s / 10)
),

kept AS (
    SELECT "id"
    FROM fair
    WHERE bytes_of_all <= %(max_bytes)s
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
