-- The filters in a host's libvirt at its last reconcile run. %(host_id)s: uuid.
SELECT
    state."name",
    state."uuid",
    state."definedAt" IS NOT NULL AS "isDefined",
    state."digest",
    state."isBound",
    state."problem"
FROM "FilterHostState" AS state
WHERE state."hostId" = %(host_id)s;
