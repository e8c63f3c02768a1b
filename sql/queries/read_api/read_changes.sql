-- A page of a machine's changes of state, the newest first. %(machine_id)s: uuid, %(most)s: integer, and what the page
-- before ended with: %(before_at)s: timestamptz, %(before_id)s: uuid.
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
