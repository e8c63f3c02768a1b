-- An action on a domain begins. %(host_id)s, %(machine_id)s: uuid. %(name)s, %(action)s, %(why)s, %(desired)s: text.
-- %(attempt)s: integer. One row: id.
-- No row, if the host does not have the machine any more or something else is wanted of it: then nothing may be done.
INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome", "desired", "attempt")
SELECT
    %(host_id)s,
    machine."id",
    %(name)s,
    %(action)s,
    %(why)s,
    'begun',
    %(desired)s,
    %(attempt)s::integer
FROM "Machine" AS machine
WHERE
    machine."id" = %(machine_id)s
    AND machine."hostId" = %(host_id)s
    AND machine."desiredStatus" = %(desired)s
RETURNING "id";
