-- A machine has reached the desired state that was held. %(machine_id)s, %(host_id)s: uuid.
-- %(desired_since)s: timestamptz, may be NULL.
UPDATE "ReconcileEvent" AS event SET "outcome" = 'reached'
FROM "Machine" AS machine
WHERE
    machine."id" = %(machine_id)s
    AND machine."hostId" = %(host_id)s
    AND machine."desiredSince" IS NOT DISTINCT FROM %(desired_since)s::timestamptz
    AND event."machineId" = machine."id"
    AND event."action" = 'hold'
    AND event."outcome" IN ('held', 'restored');
