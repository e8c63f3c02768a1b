-- A page of a machine's state changes, newest first. %(machine_id)s: uuid, %(most)s: integer, and the last row of the
-- previous page: %(before_at)s: timestamptz, %(before_id)s: uuid.
SELECT
    "occurredAt" AS "at",
    "id",
    "kind",
    "name",
    "fromState" AS from_state,
    "toState" AS to_state,
    "reason"
FROM "StateChange"
WHERE "machineId" = %(machine_id)s AND ("occurredAt", "id") < (%(before_at)s, %(before_id)s)
ORDER BY "occurredAt" DESC, "id" DESC
LIMIT %(most)s;
