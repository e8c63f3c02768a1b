-- A host takes the lease of a machine that is active there, if its holder is still the expected one.
-- %(machine_id)s, %(host_id)s, %(domain_uuid)s: uuid. %(holder)s: uuid, the expected holder, NULL for none.
-- %(host_boot)s: text.
INSERT INTO "MachineLease" ("machineId", "hostId", "hostBoot", "domainUuid")
SELECT
    machine."id",
    %(host_id)s,
    %(host_boot)s,
    %(domain_uuid)s
FROM "Machine" AS machine
WHERE machine."id" = %(machine_id)s
FOR KEY SHARE SKIP LOCKED
ON CONFLICT ("machineId") DO UPDATE SET
    "hostId" = excluded."hostId",
    "hostBoot" = excluded."hostBoot",
    "domainUuid" = excluded."domainUuid",
    "takenAt" = now()
WHERE "MachineLease"."hostId" = %(holder)s::uuid;
