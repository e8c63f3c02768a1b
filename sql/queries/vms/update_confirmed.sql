-- An operator confirms changes of the desired state, if they have not changed since: they are held no longer.
-- %(ids)s: uuid[]. %(since)s: timestamptz[], the desiredSince of each. One row per confirmed machine: id.
WITH confirmed AS (
    UPDATE "Machine" AS machine SET "confirmedSince" = machine."desiredSince"
    FROM unnest(%(ids)s::uuid [], %(since)s::timestamptz []) AS shown ("id", "since")
    WHERE machine."id" = shown."id" AND machine."desiredSince" = shown."since"
    RETURNING machine."id"
),

ended AS (
    UPDATE "ReconcileEvent" AS event SET "outcome" = 'confirmed'
    FROM confirmed
    WHERE
        event."machineId" = confirmed."id"
        AND event."action" = 'hold'
        AND event."outcome" IN ('held', 'restored')
)

SELECT "id"
FROM confirmed;
