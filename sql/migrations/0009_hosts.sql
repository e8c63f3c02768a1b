-- compat: 1
-- Which host has which machine, what is wanted of it, what the host sees of it, and what was done about it.

CREATE TABLE "Host" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "uri" text NOT NULL,
    "version" text NOT NULL,
    "lastSeen" timestamptz (3),
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "Host_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "Host_name_uri_key" UNIQUE ("name", "uri")
);

COMMENT ON TABLE "Host" IS 'A hypervisor whose machines a guestd keeps.';
COMMENT ON COLUMN "Host"."id" IS 'Public identifier; stays with the name and the URI.';
COMMENT ON COLUMN "Host"."name" IS 'Host name, or what libvirt.host_name says.';
COMMENT ON COLUMN "Host"."uri" IS 'libvirt URI, as guestd on that host opens it.';
COMMENT ON COLUMN "Host"."version" IS 'Version of libvirt and name of its driver.';
COMMENT ON COLUMN "Host"."lastSeen" IS
'When libvirt there last answered, store time; every 10 s while it does. NULL means never.';
COMMENT ON COLUMN "Host"."createdAt" IS 'When the row was made, server time.';

ALTER TABLE "Machine"
ADD COLUMN "desiredStatus" text,
ADD COLUMN "hostId" uuid,
ADD CONSTRAINT "Machine_desiredStatus_running_off_or_suspended_check" CHECK (
    "desiredStatus" IN ('running', 'off', 'suspended')
),
ADD CONSTRAINT "Machine_hostId_fkey" FOREIGN KEY ("hostId")
REFERENCES "Host" ("id") ON DELETE SET NULL ON UPDATE CASCADE;

CREATE INDEX "Machine_hostId_idx" ON "Machine" ("hostId");

COMMENT ON COLUMN "Machine"."desiredStatus" IS
'What guestd brings about where it converges: running, off or suspended; NULL means that it only observes.';
COMMENT ON COLUMN "Machine"."hostId" IS 'The host whose guestd saw its domain and keeps its status; NULL means none has.';
COMMENT ON CONSTRAINT "Machine_desiredStatus_running_off_or_suspended_check" ON "Machine" IS
'What is wanted of a machine is running, off or suspended.';

CREATE TABLE "MachineDomain" (
    "machineId" uuid NOT NULL,
    "domainUuid" uuid,
    "state" text NOT NULL,
    "reason" text NOT NULL,
    "vcpus" integer NOT NULL,
    "memoryKB" bigint NOT NULL,
    "channel" text NOT NULL,
    "problem" text,
    "changedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "MachineDomain_pkey" PRIMARY KEY ("machineId"),
    CONSTRAINT "MachineDomain_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "MachineDomain_channel_absent_or_connected_or_not_check" CHECK (
        "channel" IN ('absent', 'disconnected', 'connected')
    )
);

COMMENT ON TABLE "MachineDomain" IS 'What the host that has a machine last saw of its libvirt domain.';
COMMENT ON COLUMN "MachineDomain"."machineId" IS 'The machine.';
COMMENT ON COLUMN "MachineDomain"."domainUuid" IS 'UUID of the domain; it stays when the machine is migrated.';
COMMENT ON COLUMN "MachineDomain"."state" IS 'libvirt''s word for the domain''s state; missing when there is no domain.';
COMMENT ON COLUMN "MachineDomain"."reason" IS 'libvirt''s word for why.';
COMMENT ON COLUMN "MachineDomain"."vcpus" IS 'Virtual CPUs of the domain, count.';
COMMENT ON COLUMN "MachineDomain"."memoryKB" IS 'Memory of the domain, KiB.';
COMMENT ON COLUMN "MachineDomain"."channel" IS
'The agent''s virtio-serial port: absent, disconnected, or connected, which is while something in the guest has it open.';
COMMENT ON COLUMN "MachineDomain"."problem" IS 'What needs a person, and why; NULL for nothing.';
COMMENT ON COLUMN "MachineDomain"."changedAt" IS 'When any of this last changed, server time.';
COMMENT ON CONSTRAINT "MachineDomain_channel_absent_or_connected_or_not_check" ON "MachineDomain" IS
'The channel of a machine is absent, disconnected or connected.';

CREATE TABLE "ReconcileEvent" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "occurredAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "hostId" uuid,
    "machineId" uuid,
    "name" text NOT NULL,
    "action" text NOT NULL,
    "reason" text NOT NULL,
    "outcome" text NOT NULL,
    CONSTRAINT "ReconcileEvent_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "ReconcileEvent_hostId_fkey" FOREIGN KEY ("hostId")
    REFERENCES "Host" ("id") ON DELETE SET NULL ON UPDATE CASCADE,
    CONSTRAINT "ReconcileEvent_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE SET NULL ON UPDATE CASCADE
);

CREATE INDEX "ReconcileEvent_hostId_idx" ON "ReconcileEvent" ("hostId");
CREATE INDEX "ReconcileEvent_machineId_occurredAt_idx" ON "ReconcileEvent" ("machineId", "occurredAt");
CREATE INDEX "ReconcileEvent_occurredAt_idx" ON "ReconcileEvent" ("occurredAt");

COMMENT ON TABLE "ReconcileEvent" IS 'What guestd did to machines and to their status, and why; kept for 90 days.';
COMMENT ON COLUMN "ReconcileEvent"."id" IS 'Public identifier.';
COMMENT ON COLUMN "ReconcileEvent"."occurredAt" IS 'When, server time.';
COMMENT ON COLUMN "ReconcileEvent"."hostId" IS 'The host that did it.';
COMMENT ON COLUMN "ReconcileEvent"."machineId" IS 'The machine; NULL when it was deleted since.';
COMMENT ON COLUMN "ReconcileEvent"."name" IS 'Name of the domain.';
COMMENT ON COLUMN "ReconcileEvent"."action" IS
'claim or status, for rows; start, resume, suspend, shutdown or destroy, for domains.';
COMMENT ON COLUMN "ReconcileEvent"."reason" IS 'Why, in a sentence.';
COMMENT ON COLUMN "ReconcileEvent"."outcome" IS 'done, or what libvirt refused, in its words.';
