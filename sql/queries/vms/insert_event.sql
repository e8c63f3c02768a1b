-- Records that an action on a domain begins. One row: id. %(host_id)s, %(machine_id)s: uuid. %(name)s, %(action)s,
-- %(reason)s, %(desired)s: text. %(attempt)s: integer.
-- No row when the host no longer holds the machine or its desired state has changed: then the action must not run.
INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome", "desired", "attempt")
SELECT
    %(host_id)s,
    machine."id",
    %(name)s,
    %(action)s,
    %(reason)s,
    'begun',
    %(desired)s,
    %(attempt)s::integer
FROM "Machine" AS machine
WHERE
    machine."id" = %(machine_id)s
    AND machine."hostId" = %(host_id)s
    AND machine."desiredStatus" = %(desired)s
RETURNING "id";
