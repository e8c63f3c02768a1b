-- Sets a machine's status to that of its domain if it is unchanged since it was read and the host still holds the
-- machine, and nobody is changing the row; one event.
-- %(machine_id)s, %(host_id)s: uuid. %(before)s, %(after)s, %(name)s, %(reason)s: text.
WITH due AS (
    SELECT "id"
    FROM "Machine"
    WHERE "id" = %(machine_id)s AND "hostId" = %(host_id)s AND "status" = %(before)s
    FOR NO KEY UPDATE SKIP LOCKED
),

changed AS (
    UPDATE "Machine" AS machine SET "status" = %(after)s
    FROM due
    WHERE machine."id" = due."id"
    RETURNING machine."id"
)

INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome")
SELECT
    %(host_id)s,
    changed."id",
    %(name)s,
    'status',
    %(before)s::text || ' -> ' || %(after)s::text || ': ' || %(reason)s::text,
    'done'
FROM changed;
