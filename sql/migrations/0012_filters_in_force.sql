-- compat: 1
-- What each host's libvirt has of the filters, and why a filter is not in force.

ALTER TABLE "NWFilter"
ADD COLUMN "problem" text;

COMMENT ON COLUMN "NWFilter"."flushedAt" IS
'Since when libvirt has the filter as the rows say, on every live host whose interfaces use it; NULL while it has not.';
COMMENT ON COLUMN "NWFilter"."problem" IS 'Why libvirt does not have the filter as the rows say; NULL for nothing.';

CREATE TABLE "FilterHostState" (
    "hostId" uuid NOT NULL,
    "name" text NOT NULL,
    "uuid" uuid NOT NULL,
    "definedAt" timestamptz (3),
    "digest" text,
    "inForceAt" timestamptz (3),
    "isBound" boolean NOT NULL DEFAULT FALSE,
    "problem" text,
    CONSTRAINT "FilterHostState_pkey" PRIMARY KEY ("hostId", "name", "uuid"),
    CONSTRAINT "FilterHostState_hostId_fkey" FOREIGN KEY ("hostId")
    REFERENCES "Host" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE INDEX "FilterHostState_name_uuid_idx" ON "FilterHostState" ("name", "uuid");

COMMENT ON TABLE "FilterHostState" IS 'What a host''s libvirt has of the filters: of rows, and one of each machine there.';
COMMENT ON COLUMN "FilterHostState"."hostId" IS 'The host.';
COMMENT ON COLUMN "FilterHostState"."name" IS 'Name in libvirt: NWFilter.internalName, or that of a machine''s own filter.';
COMMENT ON COLUMN "FilterHostState"."uuid" IS 'UUID in libvirt.';
COMMENT ON COLUMN "FilterHostState"."definedAt" IS
'When guestd was last about to tell libvirt there of it, server time; NULL means never: it is not guestd''s to remove.';
COMMENT ON COLUMN "FilterHostState"."digest" IS
'SHA-256 of what libvirt was read back to have, when that is what the rows say; else NULL.';
COMMENT ON COLUMN "FilterHostState"."inForceAt" IS 'Since when libvirt has it as the rows say; NULL while it has not.';
COMMENT ON COLUMN "FilterHostState"."isBound" IS
'True when an interface there names it, or a filter that includes it, now or when its machine is started.';
COMMENT ON COLUMN "FilterHostState"."problem" IS 'Why libvirt does not have it as the rows say; NULL for nothing.';

COMMENT ON TABLE "ReconcileEvent" IS 'What guestd did to machines, their status and their filters, and why; kept for 90 days.';
COMMENT ON COLUMN "ReconcileEvent"."machineId" IS 'The machine; NULL for a filter, and when it was deleted since.';
COMMENT ON COLUMN "ReconcileEvent"."name" IS 'Name of the domain, or of the filter.';
COMMENT ON COLUMN "ReconcileEvent"."action" IS
'claim or status, for rows; start, resume, suspend, shutdown or destroy, for domains; define or remove, for filters; attach or bind, for interfaces.';
COMMENT ON COLUMN "ReconcileEvent"."outcome" IS
'done, or what libvirt refused, in its words; begun, when guestd ended before it was known.';
