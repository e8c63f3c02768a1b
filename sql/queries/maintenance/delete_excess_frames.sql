-- Deletes quarantined frames beyond an age, a number and a size; the oldest first. No machine may use more than a tenth
-- of number and size (but always one frame), and frames beyond a machine's tenth do not count against the other
-- machines: one machine can send any number of them between two runs. %(keep_days)s, %(max_frames)s: integer;
-- %(max_bytes)s: bigint. One row: number of frames deleted, number kept.
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
    DELETE FROM "QuarantinedFrame" AS quarantined
    WHERE
        NOT EXISTS (
            SELECT 1 FROM kept
            WHERE kept."id" = quarantined."id"
        )
    RETURNING quarantined."id"
)

SELECT
    (SELECT COUNT(*) FROM gone) AS dropped,
    (SELECT COUNT(*) FROM kept) AS held;
