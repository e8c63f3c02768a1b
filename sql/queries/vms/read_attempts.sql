-- What was last tried with the machines of a host to get them where they are wanted, but for those that have run since
-- for so long that it helped. %(host_id)s: uuid. %(healthy_seconds)s: double precision.
-- Rows: machineId, desired, action, attempt, seconds ago.
SELECT
    machine."id",
    latest."desired",
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
    WHERE event."machineId" = machine."id" AND event."attempt" IS NOT NULL
    ORDER BY event."occurredAt" DESC
    LIMIT 1
) AS latest ON machine."desiredStatus" = latest."desired"
LEFT JOIN "MachineDomain" AS seen ON machine."id" = seen."machineId"
WHERE
    machine."hostId" = %(host_id)s
    AND (
        seen."state" IS DISTINCT FROM 'running'
        OR machine."desiredStatus" <> 'running'
        OR seen."changedAt" > now() - make_interval(secs => %(healthy_seconds)s)
    );
