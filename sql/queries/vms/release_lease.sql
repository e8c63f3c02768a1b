-- A person releases a lease, if it still is the one that was shown; one event, and one row if it was.
-- %(machine_id)s, %(host_id)s: uuid. %(taken_at)s: timestamptz. %(name)s, %(reason)s: text.
WITH released AS (
    DELETE FROM "MachineLease"
    WHERE "machineId" = %(machine_id)s AND "hostId" = %(host_id)s AND "takenAt" = %(taken_at)s::timestamptz
    RETURNING "machineId", "hostId"
)

INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome")
SELECT
    released."hostId",
    released."machineId",
    %(name)s,
    'release',
    %(reason)s,
    'done'
FROM released;
