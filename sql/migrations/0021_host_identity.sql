-- compat: 1
-- Two hosts that use one name are told apart, and a host notices that the store was restored from a backup.

ALTER TABLE "Host"
ADD COLUMN "identity" text,
ADD COLUMN "boot" text,
ADD COLUMN "reports" bigint NOT NULL DEFAULT 0,
ADD COLUMN "reportedAt" timestamptz (3);

COMMENT ON COLUMN "Host"."identity" IS
'libvirt''s UUID of the host, a slash, and a hash of its machine ID: a guestd on another host is refused. NULL until one has reported it.';
COMMENT ON COLUMN "Host"."boot" IS
'The boot of the host''s kernel when its guestd last connected; empty where guestd runs on another machine than libvirt.';
COMMENT ON COLUMN "Host"."lastSeen" IS
'When libvirt there last answered, store time; every 10 s while it does. The filters update it as well. NULL means never.';
COMMENT ON COLUMN "Host"."reports" IS
'How often its guestd has reported machines or begun an action; less than guestd remembers after the store was restored from a backup.';
COMMENT ON COLUMN "Host"."reportedAt" IS
'When its guestd last reported its machines, store time: a refused host does not. NULL before a guestd that writes it.';

-- Read for every machine in every run: the holds of a machine, not all of its events.
CREATE INDEX "ReconcileEvent_machineId_occurredAt_hold_idx" ON "ReconcileEvent" ("machineId", "occurredAt")
WHERE "action" = 'hold';

-- A hold that has ended says so from now on.
UPDATE "ReconcileEvent" AS event
SET "outcome" = CASE WHEN machine."confirmedSince" = machine."desiredSince" THEN 'confirmed' ELSE 'reached' END
FROM "Machine" AS machine
LEFT JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
WHERE
    event."machineId" = machine."id"
    AND event."action" = 'hold'
    AND event."outcome" = 'held'
    AND machine."desiredSince" IN (machine."confirmedSince", domain."reachedSince");

COMMENT ON COLUMN "ReconcileEvent"."action" IS
'claim or status, for rows; start, resume, suspend, shutdown or destroy, for domains; hold, for a change that waits for a confirmation; release, of a lease; define or remove, for filters; attach or bind, for interfaces.';
COMMENT ON COLUMN "ReconcileEvent"."outcome" IS
'done, or what libvirt refused, in its words; begun, when guestd ended before it was known; of a hold: held or restored while it lasts, then confirmed or reached.';
