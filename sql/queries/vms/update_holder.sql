-- A host claims a machine if its holder is still the expected one; one event. %(machine_id)s, %(host_id)s, %(holder)s:
-- uuid, the expected holder, NULL for none. %(name)s, %(reason)s: text.
WITH claimed AS (
    UPDATE "Machine" SET "hostId" = %(host_id)s
    WHERE "id" = %(machine_id)s AND "hostId" IS NOT DISTINCT FROM %(holder)s::uuid
    RETURNING "id"
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
