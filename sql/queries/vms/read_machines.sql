-- The machines that a host holds or has a lease of, and those of the given domains, with their graphics, domain facts
-- and leases. %(host_id)s: uuid, NULL for none. %(names)s: text[]. %(uuids)s: uuid[], of these domains.
-- guestd.vms.store reads the columns by name. An earlier guestd writes no reportedAt: its host counts as live by lastSeen,
-- so that no machine is claimed from it.
SELECT
    machine."id",
    machine."internalName",
    machine."status",
    machine."desiredStatus",
    machine."desiredSince",
    machine."confirmedSince",
    hold."isHeld",
    hold."isRestored",
    machine."hostId",
    coalesce(coalesce(host."reportedAt", host."lastSeen") > now() - INTERVAL '60 seconds', FALSE) AS "isHolderLive",
    machine."cpuCores",
    machine."ramGB",
    configuration."machineId" IS NOT NULL AS "hasGraphics",
    configuration."graphicProtocol",
    coalesce(configuration."graphicPort", -1) AS "graphicPort",
    configuration."graphicHost",
    domain."machineId" IS NOT NULL AS "hasFacts",
    domain."domainUuid",
    domain."state",
    domain."reason",
    domain."vcpus",
    domain."memoryKB",
    domain."channel",
    domain."problem",
    domain."reachedSince",
    lease."hostId" AS "leaseHostId",
    lease."hostBoot" AS "leaseHostBoot",
    lease."domainUuid" AS "leaseDomainUuid",
    coalesce(leased."name", '') AS "leaseHostName"
FROM "Machine" AS machine
LEFT JOIN "Host" AS host ON machine."hostId" = host."id"
LEFT JOIN "MachineConfiguration" AS configuration ON machine."id" = configuration."machineId"
LEFT JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
LEFT JOIN "MachineLease" AS lease ON machine."id" = lease."machineId"
LEFT JOIN "Host" AS leased ON lease."hostId" = leased."id"
LEFT JOIN LATERAL (
    SELECT
        count(*) > 0 AS "isHeld",
        count(*) FILTER (WHERE event."outcome" = 'restored') > 0 AS "isRestored"
    FROM "ReconcileEvent" AS event
    WHERE
        event."machineId" = machine."id"
        AND event."action" = 'hold'
        AND event."outcome" IN ('held', 'restored')
        AND event."occurredAt" >= coalesce(machine."desiredSince", event."occurredAt")
) AS hold ON TRUE
WHERE
    machine."hostId" = %(host_id)s::uuid
    OR lease."hostId" = %(host_id)s::uuid
    OR machine."internalName" = ANY(%(names)s::text [])
    OR domain."domainUuid" = ANY(%(uuids)s::uuid [])
ORDER BY machine."id";
