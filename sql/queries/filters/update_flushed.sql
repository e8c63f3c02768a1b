-- Sets flushedAt and problem of every filter from its state on the live hosts (libvirt answered within a minute): those
-- whose interfaces use it, or all when none does. flushedAt is NULL until they all have the same definition.
WITH live AS (
    SELECT
        state."name",
        state."uuid",
        state."digest",
        state."inForceAt",
        state."problem",
        state."isBound" OR NOT bool_or(state."isBound") OVER (PARTITION BY state."name", state."uuid") AS "counts"
    FROM "FilterHostState" AS state
    INNER JOIN "Host" AS host ON state."hostId" = host."id"
    WHERE host."lastSeen" > now() - INTERVAL '60 seconds'
),

settled AS (
    SELECT
        live."name",
        live."uuid",
        CASE
            WHEN bool_and(live."digest" IS NOT NULL) AND count(DISTINCT live."digest") = 1 THEN max(live."inForceAt")
        END AS "flushedAt",
        string_agg(DISTINCT live."problem", '; ') AS "problem"
    FROM live
    WHERE live."counts"
    GROUP BY live."name", live."uuid"
)

UPDATE "NWFilter" AS filter SET
    "flushedAt" = settled."flushedAt",
    "problem" = settled."problem"
FROM settled
WHERE
    filter."internalName" = settled."name"
    AND filter."uuid" = settled."uuid"
    AND (
        filter."flushedAt" IS DISTINCT FROM settled."flushedAt"
        OR filter."problem" IS DISTINCT FROM settled."problem"
    );
