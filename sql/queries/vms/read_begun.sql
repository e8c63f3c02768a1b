-- The machines of a host for whose present desired state an action has been allowed: that change has begun.
-- %(host_id)s: uuid. Rows: machine, desiredSince.
SELECT
    machine."id",
    machine."desiredSince"
FROM "Machine" AS machine
WHERE
    machine."hostId" = %(host_id)s
    AND machine."desiredSince" IS NOT NULL
    AND EXISTS (
        SELECT
        FROM "ReconcileEvent" AS event
        WHERE
            event."machineId" = machine."id"
            AND event."occurredAt" >= machine."desiredSince"
            AND event."attempt" IS NOT NULL
            AND event."desired" = machine."desiredStatus"
    );
