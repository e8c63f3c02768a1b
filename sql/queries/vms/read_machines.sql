-- The machines that a host holds and those of the given domains, with their graphics and domain facts.
-- %(host_id)s: uuid, NULL for none. %(names)s: text[]. guestd.vms.store reads the columns by name.
SELECT
    machine."id",
    machine."internalName",
    machine."status",
    machine."desiredStatus",
    machine."hostId",
    coalesce(host."lastSeen" > now() - INTERVAL '60 seconds', FALSE) AS "isHolderLive",
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
    domain."problem"
FROM "Machine" AS machine
LEFT JOIN "Host" AS host ON machine."hostId" = host."id"
LEFT JOIN "MachineConfiguration" AS configuration ON machine."id" = configuration."machineId"
LEFT JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
WHERE machine."hostId" = %(host_id)s::uuid OR machine."internalName" = ANY(%(names)s::text [])
ORDER BY machine."id";
