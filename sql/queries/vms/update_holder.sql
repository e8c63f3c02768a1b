-- A host claims a machine if its holder is still the expected one and nobody is changing the row; one event.
-- %(machine_id)s, %(host_id)s, %(holder)s: uuid, the expected holder, NULL for none. %(name)s, %(reason)s: text.
WITH due AS (
    SELECT "id"
    FROM "Machine"
    WHERE "id" = %(machine_id)s AND "hostId" IS NOT DISTINCT FROM %(holder)s::uuid
    FOR NO KEY UPDATE SKIP LOCKED
),

claimed AS (
    UPDATE "Machine" AS machine SET "hostId" = %(host_id)s
    FROM due
    WHERE machine."id" = due."id"
    RETURNING machine."id"
)

INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome")
SELECT
    %(host_id)s,
    claimed."id",
    %(name)s,
    'claim',
    %(reason)s,
    'done'
FROM claimed;
