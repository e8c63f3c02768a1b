-- compat: 1
-- Which host runs each machine or may run it, since when its desired state has been what it is, and who confirmed that.

ALTER TABLE "Machine"
ADD COLUMN "desiredSince" timestamptz (3),
ADD COLUMN "confirmedSince" timestamptz (3);

COMMENT ON COLUMN "Machine"."desiredSince" IS
'When desiredStatus last changed, server time; set by a trigger. NULL while the machine never had a desired state.';
COMMENT ON COLUMN "Machine"."confirmedSince" IS
'The desiredSince that an operator confirmed with guestd apply: that change is not held. NULL for none.';

ALTER TABLE "MachineDomain"
ADD COLUMN "reachedSince" timestamptz (3);

COMMENT ON COLUMN "MachineDomain"."reachedSince" IS
'The Machine.desiredSince of the last desired state that the domain reached; NULL for none.';

CREATE TABLE "MachineLease" (
    "machineId" uuid NOT NULL,
    "hostId" uuid NOT NULL,
    "hostBoot" text NOT NULL,
    "domainUuid" uuid NOT NULL,
    "takenAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "MachineLease_pkey" PRIMARY KEY ("machineId"),
    CONSTRAINT "MachineLease_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "MachineLease_hostId_fkey" FOREIGN KEY ("hostId")
    REFERENCES "Host" ("id") ON DELETE RESTRICT ON UPDATE CASCADE
);

CREATE INDEX "MachineLease_hostId_idx" ON "MachineLease" ("hostId");

COMMENT ON TABLE "MachineLease" IS
'The host that runs a machine, or may run it: no other host starts it. It does not expire; docs/vms.md says when to delete a row.';
COMMENT ON COLUMN "MachineLease"."machineId" IS 'The machine.';
COMMENT ON COLUMN "MachineLease"."hostId" IS 'The host.';
COMMENT ON COLUMN "MachineLease"."hostBoot" IS
'The boot of that host''s kernel in which the domain was last active; empty where guestd runs on another machine.';
COMMENT ON COLUMN "MachineLease"."domainUuid" IS 'UUID of the domain.';
COMMENT ON COLUMN "MachineLease"."takenAt" IS 'When the host observed it active there, or was about to start it, server time.';

UPDATE "Machine" SET "desiredSince" = "updatedAt"
WHERE "desiredStatus" IS NOT NULL;

-- What was last observed active may still be.
INSERT INTO "MachineLease" ("machineId", "hostId", "hostBoot", "domainUuid")
SELECT
    machine."id",
    machine."hostId",
    '' AS "hostBoot",
    domain."domainUuid"
FROM "Machine" AS machine
INNER JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
WHERE
    machine."hostId" IS NOT NULL
    AND domain."domainUuid" IS NOT NULL
    AND domain."state" NOT IN ('shutoff', 'missing');
