-- The facts about a machine's domain, while the host holds the machine. %(machine_id)s, %(host_id)s: uuid.
-- %(domain_uuid)s: uuid, may be NULL. %(state)s, %(reason)s, %(channel)s, %(problem)s: text, the last may be NULL.
-- %(vcpus)s: integer. %(memory_kib)s: bigint. %(reached_since)s: timestamptz, may be NULL.
INSERT INTO "MachineDomain" (
    "machineId", "domainUuid", "state", "reason", "vcpus", "memoryKB", "channel", "problem", "reachedSince"
)
SELECT
    machine."id",
    %(domain_uuid)s::uuid,
    %(state)s,
    %(reason)s,
    %(vcpus)s,
    %(memory_kib)s,
    %(channel)s,
    %(problem)s,
    %(reached_since)s::timestamptz
FROM "Machine" AS machine
WHERE machine."id" = %(machine_id)s AND machine."hostId" = %(host_id)s
FOR KEY SHARE SKIP LOCKED
ON CONFLICT ("machineId") DO UPDATE SET
    "domainUuid" = excluded."domainUuid",
    "state" = excluded."state",
    "reason" = excluded."reason",
    "vcpus" = excluded."vcpus",
    "memoryKB" = excluded."memoryKB",
    "channel" = excluded."channel",
    "problem" = excluded."problem",
    "reachedSince" = excluded."reachedSince",
    "changedAt" = now();
