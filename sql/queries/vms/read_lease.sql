-- The lease of a machine, by the name of its domain. %(name)s: text. At most one row: machine, internalName,
-- host, its name, takenAt, UUID of the domain; whether the host has reported within 60 s; whether the machine is assigned to
-- it; and the state of the domain, as the host to which the machine is assigned last observed it, NULL if none has.
SELECT
    lease."machineId",
    machine."internalName",
    lease."hostId",
    host."name",
    lease."takenAt",
    lease."domainUuid",
    coalesce(coalesce(host."reportedAt", host."lastSeen") > now() - INTERVAL '60 seconds', FALSE),
    coalesce(machine."hostId" = lease."hostId", FALSE),
    domain."state"
FROM "MachineLease" AS lease
INNER JOIN "Machine" AS machine ON lease."machineId" = machine."id"
INNER JOIN "Host" AS host ON lease."hostId" = host."id"
LEFT JOIN "MachineDomain" AS domain ON lease."machineId" = domain."machineId"
WHERE machine."internalName" = %(name)s;
