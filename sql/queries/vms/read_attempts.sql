-- The last action of each machine of a host that libvirt accepted and that was for the present desired state, except
-- machines that have run since for longer than %(healthy_seconds)s: double precision. %(host_id)s: uuid.
-- Rows: machineId, desired, desiredSince, action, attempt, seconds ago.
SELECT
    machine."id",
    latest."desired",
    machine."desiredSince",
    latest."action",
    latest."attempt",
    extract(EPOCH FROM now() - latest."occurredAt")::double precision
FROM "Machine" AS machine
INNER JOIN LATERAL (
    SELECT
        event."desired",
        event."action",
        event."attempt",
        event."occurredAt"
    FROM "ReconcileEvent" AS event
    WHERE
        event."machineId" = machine."id"
        AND event."attempt" IS NOT NULL
        AND event."outcome" = 'done'
        AND event."occurredAt" >= coalesce(machine."desiredSince", event."occurredAt")
    ORDER BY event."occurredAt" DESC
    LIMIT 1
) AS latest ON machine."desiredStatus" = latest."desired"
LEFT JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
WHERE
    machine."hostId" = %(host_id)s
    AND (
        domain."state" IS DISTINCT FROM 'running'
        OR machine."desiredStatus" <> 'running'
        OR domain."changedAt" > now() - make_interval(secs => %(healthy_seconds)s)
    );
