-- Sets a machine's status to that of its domain if it is unchanged since it was read and the host still holds the
-- machine; one event.
-- %(machine_id)s, %(host_id)s: uuid. %(before)s, %(after)s, %(name)s, %(reason)s: text.
WITH changed AS (
    UPDATE "Machine" SET "status" = %(after)s
    WHERE "id" = %(machine_id)s AND "hostId" = %(host_id)s AND "status" = %(before)s
    RETURNING "id"
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
