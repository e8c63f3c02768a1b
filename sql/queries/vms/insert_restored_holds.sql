-- After the store was restored: holds the desired state of every machine that a host has or may have, until it is
-- confirmed, reached, or set to another value and back. Not that of another host that reports: it notices by itself.
-- %(host_id)s: uuid. %(names)s: text[], %(uuids)s: uuid[], of the domains of the host. %(reason)s: text.
-- %(is_new)s: boolean, whether the host's row is a new one: of its machines the store then knows only these domains.
INSERT INTO "ReconcileEvent" ("occurredAt", "hostId", "machineId", "name", "action", "reason", "outcome", "desired")
SELECT
    -- A desired state may be of a time in the future: before the server's clock was set back.
    greatest(now(), machine."desiredSince"),
    %(host_id)s,
    machine."id",
    machine."internalName",
    'hold',
    %(reason)s,
    'restored',
    machine."desiredStatus"
FROM "Machine" AS machine
LEFT JOIN "Host" AS holder ON machine."hostId" = holder."id"
LEFT JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
LEFT JOIN "MachineLease" AS lease ON machine."id" = lease."machineId"
WHERE
    machine."desiredStatus" IS NOT NULL
    AND (
        (machine."hostId" IS NULL AND NOT %(is_new)s)
        OR machine."hostId" = %(host_id)s
        OR lease."hostId" = %(host_id)s
        OR machine."internalName" = ANY(%(names)s::text [])
        OR domain."domainUuid" = ANY(%(uuids)s::uuid [])
    )
    AND NOT (
        holder."id" IS DISTINCT FROM %(host_id)s
        AND coalesce(holder."reportedAt" > now() - INTERVAL '60 seconds', FALSE)
    )
    AND NOT EXISTS (
        SELECT
        FROM "ReconcileEvent" AS event
        WHERE
            event."machineId" = machine."id"
            AND event."action" = 'hold'
            AND event."outcome" = 'restored'
            AND event."occurredAt" >= coalesce(machine."desiredSince", event."occurredAt")
    );
