-- The lease of a machine, by the name of its domain. %(name)s: text. At most one row: machine, internalName,
-- host, its name, takenAt, UUID of the domain.
SELECT
    lease."machineId",
    machine."internalName",
    lease."hostId",
    host."name",
    lease."takenAt",
    lease."domainUuid"
FROM "MachineLease" AS lease
INNER JOIN "Machine" AS machine ON lease."machineId" = machine."id"
INNER JOIN "Host" AS host ON lease."hostId" = host."id"
WHERE machine."internalName" = %(name)s;
