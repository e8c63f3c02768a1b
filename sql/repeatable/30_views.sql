-- Views for people and for the platform.

CREATE OR REPLACE VIEW "ActiveUser" AS
SELECT
    "id",
    "email",
    "firstName",
    "lastName",
    "avatar",
    "role",
    "createdAt"
FROM "User"
WHERE NOT "deleted";

COMMENT ON VIEW "ActiveUser" IS 'The users who may sign in, without passwords and tokens.';
COMMENT ON COLUMN "ActiveUser"."id" IS 'User.id.';
COMMENT ON COLUMN "ActiveUser"."email" IS 'Sign-in name.';
COMMENT ON COLUMN "ActiveUser"."firstName" IS 'Given name.';
COMMENT ON COLUMN "ActiveUser"."lastName" IS 'Family name.';
COMMENT ON COLUMN "ActiveUser"."avatar" IS 'Path or address of the profile picture.';
COMMENT ON COLUMN "ActiveUser"."role" IS 'Free text; the platform writes ADMIN, USER and, later, SUPER_ADMIN.';
COMMENT ON COLUMN "ActiveUser"."createdAt" IS 'When the row was created, server time.';

CREATE OR REPLACE VIEW "MachineState" AS
SELECT
    machine."id",
    machine."name",
    machine."internalName",
    machine."status",
    machine."desiredStatus",
    CASE
        WHEN machine."hostId" IS NULL OR host."lastSeen" > now() - INTERVAL '60 seconds' THEN machine."status"
        ELSE 'unknown'
    END AS "state",
    machine."hostId",
    host."name" AS "hostName",
    host."lastSeen" AS "hostLastSeen",
    seen."state" AS "domainState",
    seen."reason" AS "domainReason",
    seen."channel",
    machine."cpuCores",
    seen."vcpus",
    machine."ramGB",
    seen."memoryKB",
    coalesce(machine."cpuCores" > 0 AND seen."vcpus" > 0 AND machine."cpuCores" <> seen."vcpus", FALSE)
    OR coalesce(
        machine."ramGB" > 0 AND seen."memoryKB" > 0 AND machine."ramGB"::bigint * 1048576 <> seen."memoryKB", FALSE
    ) AS "isDrifted",
    seen."problem",
    seen."changedAt",
    (
        SELECT sample."timestamp"
        FROM "SystemMetrics" AS sample
        WHERE sample."machineId" = machine."id"
        ORDER BY sample."timestamp" DESC
        LIMIT 1
    ) AS "lastSampleAt",
    agent."dialect"
FROM "Machine" AS machine
LEFT JOIN "Host" AS host ON machine."hostId" = host."id"
LEFT JOIN "MachineDomain" AS seen ON machine."id" = seen."machineId"
LEFT JOIN "MachineAgent" AS agent ON machine."id" = agent."machineId";

COMMENT ON VIEW "MachineState" IS 'The state of each machine; unknown while its host has not reported for 60 seconds.';
COMMENT ON COLUMN "MachineState"."id" IS 'Machine.id.';
COMMENT ON COLUMN "MachineState"."name" IS 'Name for people.';
COMMENT ON COLUMN "MachineState"."internalName" IS 'Name of the libvirt domain.';
COMMENT ON COLUMN "MachineState"."status" IS 'Machine.status, the last known state.';
COMMENT ON COLUMN "MachineState"."desiredStatus" IS 'The desired state; NULL for none.';
COMMENT ON COLUMN "MachineState"."state" IS
'Machine.status, or unknown when libvirt on its host has not answered for 60 seconds.';
COMMENT ON COLUMN "MachineState"."hostId" IS 'The host that runs it; NULL while no host has claimed it.';
COMMENT ON COLUMN "MachineState"."hostName" IS 'Name of that host.';
COMMENT ON COLUMN "MachineState"."hostLastSeen" IS 'When libvirt on that host last answered.';
COMMENT ON COLUMN "MachineState"."domainState" IS 'State of the domain, in libvirt''s terms; missing when there is no domain.';
COMMENT ON COLUMN "MachineState"."domainReason" IS 'Reason of that state, in libvirt''s terms.';
COMMENT ON COLUMN "MachineState"."channel" IS 'The agent''s port: absent, disconnected or connected.';
COMMENT ON COLUMN "MachineState"."cpuCores" IS 'Virtual CPUs of the Machine row, count.';
COMMENT ON COLUMN "MachineState"."vcpus" IS 'Virtual CPUs of the domain, count.';
COMMENT ON COLUMN "MachineState"."ramGB" IS 'Memory of the Machine row, GB.';
COMMENT ON COLUMN "MachineState"."memoryKB" IS 'Memory of the domain, KiB.';
COMMENT ON COLUMN "MachineState"."isDrifted" IS 'True when the row and the domain differ in CPUs or memory.';
COMMENT ON COLUMN "MachineState"."problem" IS 'Why it needs manual action; NULL when it does not.';
COMMENT ON COLUMN "MachineState"."changedAt" IS 'When the facts about its domain last changed.';
COMMENT ON COLUMN "MachineState"."lastSampleAt" IS 'When its guest took the last sample; NULL means never.';
COMMENT ON COLUMN "MachineState"."dialect" IS
'Dialect of its agent: D0, D1, D2, D3 or guestd; NULL while no sample was stored.';

CREATE OR REPLACE VIEW "MachineWithoutData" AS
SELECT
    machine."id",
    machine."name",
    machine."internalName",
    machine."state",
    machine."hostId",
    machine."channel",
    machine."lastSampleAt",
    coalesce(machine."lastSampleAt", made."createdAt") AS "since"
FROM "MachineState" AS machine
INNER JOIN "Machine" AS made ON machine."id" = made."id"
WHERE
    machine."state" IN ('running', 'unknown')
    AND made."isCollected"
    AND coalesce(machine."lastSampleAt", made."createdAt") < now() - INTERVAL '5 minutes';

COMMENT ON VIEW "MachineWithoutData" IS
'Machines whose state is running or unknown and whose guests have not reported for 5 minutes.';
COMMENT ON COLUMN "MachineWithoutData"."id" IS 'Machine.id.';
COMMENT ON COLUMN "MachineWithoutData"."name" IS 'Name for people.';
COMMENT ON COLUMN "MachineWithoutData"."internalName" IS 'Name of the libvirt domain.';
COMMENT ON COLUMN "MachineWithoutData"."state" IS 'running or unknown.';
COMMENT ON COLUMN "MachineWithoutData"."hostId" IS 'The host that runs it.';
COMMENT ON COLUMN "MachineWithoutData"."channel" IS 'The agent''s port: absent, disconnected or connected.';
COMMENT ON COLUMN "MachineWithoutData"."lastSampleAt" IS 'When its guest took the last sample; NULL means never.';
COMMENT ON COLUMN "MachineWithoutData"."since" IS 'Start of the gap: the time of the last sample, or when the machine was created.';
