-- Records that a change of the desired state is held, while the host holds the machine: until it is confirmed or reached,
-- or the desired state is set to another value. %(machine_id)s, %(host_id)s: uuid. %(name)s, %(reason)s: text. %(desired_since)s: timestamptz.
INSERT INTO "ReconcileEvent" ("occurredAt", "hostId", "machineId", "name", "action", "reason", "outcome", "desired")
SELECT
    -- It may be of a time in the future: before the server's clock was set back.
    greatest(now(), machine."desiredSince"),
    %(host_id)s,
    machine."id",
    %(name)s,
    'hold',
    %(reason)s,
    'held',
    machine."desiredStatus"
FROM "Machine" AS machine
WHERE
    machine."id" = %(machine_id)s
    AND machine."hostId" = %(host_id)s
    AND machine."desiredSince" = %(desired_since)s::timestamptz
FOR KEY SHARE SKIP LOCKED;
