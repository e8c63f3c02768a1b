-- Records that actions on filters and interfaces begin. %(host_id)s: uuid.
-- %(actions)s: jsonb, objects of id, machine, name, action, reason.
INSERT INTO "ReconcileEvent" ("id", "hostId", "machineId", "name", "action", "reason", "outcome")
SELECT
    step."id",
    %(host_id)s,
    machine."id" AS "machineId",
    step."name",
    step."action",
    step."reason",
    'begun'
FROM jsonb_to_recordset(%(actions)s) AS step ("id" uuid, "machine" uuid, "name" text, "action" text, "reason" text)
LEFT JOIN "Machine" AS machine ON step."machine" = machine."id";
