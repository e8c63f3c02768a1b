-- compat: 1
-- The four metric families: series as hypertables, inventories as plain tables merged from the same messages.
-- Hypertables carry natural keys and no foreign key; docs/decisions/0020 and 0021 say why.

CREATE TABLE "SystemMetrics" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "machineId" uuid NOT NULL,
    "timestamp" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "receivedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "cpuUsagePercent" double precision NOT NULL,
    "cpuCoresUsage" jsonb NOT NULL,
    "cpuTemperature" double precision,
    "totalMemoryKB" bigint NOT NULL,
    "usedMemoryKB" bigint NOT NULL,
    "availableMemoryKB" bigint NOT NULL,
    "swapTotalKB" bigint,
    "swapUsedKB" bigint,
    "diskUsageStats" jsonb NOT NULL,
    "diskIOStats" jsonb NOT NULL,
    "networkStats" jsonb NOT NULL,
    "uptime" bigint NOT NULL,
    "loadAverage" jsonb,
    CONSTRAINT "SystemMetrics_pkey" PRIMARY KEY ("id", "timestamp"),
    CONSTRAINT "SystemMetrics_machineId_timestamp_key" UNIQUE ("machineId", "timestamp"),
    CONSTRAINT "SystemMetrics_cpuUsagePercent_0_to_100_check" CHECK ("cpuUsagePercent" BETWEEN 0 AND 100),
    CONSTRAINT "SystemMetrics_cpuCoresUsage_0_to_100_check" CHECK (
        jsonb_typeof("cpuCoresUsage") = 'array'
        AND NOT jsonb_path_exists("cpuCoresUsage", '$[*] ? (@ < 0 || @ > 100)')
    )
);

SELECT create_hypertable(
    '"SystemMetrics"',
    by_range('timestamp', INTERVAL '7 days'),
    create_default_indexes => FALSE
);

COMMENT ON TABLE "SystemMetrics" IS
'One row per message of a machine: CPU, memory, disks, network. Hypertable on timestamp, chunks of 7 days.';
COMMENT ON COLUMN "SystemMetrics"."id" IS 'Identifier of the sample; the daemon writes a UUIDv7.';
COMMENT ON COLUMN "SystemMetrics"."machineId" IS
'The Machine; no foreign key, the writer locks the Machine row and a trigger deletes.';
COMMENT ON COLUMN "SystemMetrics"."timestamp" IS
'When the guest took the sample; shared by all rows of one message. Receive time where the guest''s clock is not plausible.';
COMMENT ON COLUMN "SystemMetrics"."receivedAt" IS 'When guestd took the message, host time; strictly increasing per machine.';
COMMENT ON COLUMN "SystemMetrics"."cpuUsagePercent" IS 'CPU in use over all cores, percent, 0 to 100.';
COMMENT ON COLUMN "SystemMetrics"."cpuCoresUsage" IS 'Array with one number per logical core, percent, 0 to 100.';
COMMENT ON COLUMN "SystemMetrics"."cpuTemperature" IS 'CPU temperature, degrees Celsius.';
COMMENT ON COLUMN "SystemMetrics"."totalMemoryKB" IS 'Memory, KiB.';
COMMENT ON COLUMN "SystemMetrics"."usedMemoryKB" IS 'Memory in use, KiB.';
COMMENT ON COLUMN "SystemMetrics"."availableMemoryKB" IS 'Memory that programs can still get, KiB.';
COMMENT ON COLUMN "SystemMetrics"."swapTotalKB" IS 'Swap, KiB; NULL where there is none.';
COMMENT ON COLUMN "SystemMetrics"."swapUsedKB" IS 'Swap in use, KiB; NULL where there is none.';
COMMENT ON COLUMN "SystemMetrics"."diskUsageStats" IS
'Array of objects: mountPoint, totalGB, usedGB, availableGB (GiB each).';
COMMENT ON COLUMN "SystemMetrics"."diskIOStats" IS
'Object: readBytesPerSec, writeBytesPerSec (bytes/s), readOpsPerSec, writeOpsPerSec (operations/s).';
COMMENT ON COLUMN "SystemMetrics"."networkStats" IS
'Array of objects: interface, bytesReceived, bytesSent (bytes/s), packetsReceived, packetsSent (packets/s).';
COMMENT ON COLUMN "SystemMetrics"."uptime" IS 'Time since the guest booted, s.';
COMMENT ON COLUMN "SystemMetrics"."loadAverage" IS
'Object: load1min, load5min, load15min (mean number of runnable tasks); NULL on Windows.';
COMMENT ON CONSTRAINT "SystemMetrics_cpuUsagePercent_0_to_100_check" ON "SystemMetrics" IS
'CPU usage is a percentage of the whole machine, from 0 to 100.';
COMMENT ON CONSTRAINT "SystemMetrics_cpuCoresUsage_0_to_100_check" ON "SystemMetrics" IS
'Core usage is an array with one percentage per core, each from 0 to 100.';

CREATE TABLE "ProcessSnapshot" (
    "machineId" uuid NOT NULL,
    "timestamp" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "processId" integer NOT NULL,
    "parentPid" integer,
    "name" text NOT NULL,
    "executablePath" text,
    "commandLine" text,
    "cpuUsagePercent" double precision NOT NULL,
    "memoryUsageKB" bigint NOT NULL,
    "diskReadBytes" bigint,
    "diskWriteBytes" bigint,
    "status" text NOT NULL,
    "startTime" timestamptz (3),
    CONSTRAINT "ProcessSnapshot_pkey" PRIMARY KEY ("machineId", "timestamp", "processId"),
    CONSTRAINT "ProcessSnapshot_cpuUsagePercent_at_least_0_check" CHECK (
        "cpuUsagePercent" >= 0 AND "cpuUsagePercent" < 'Infinity'
    )
);

SELECT create_hypertable(
    '"ProcessSnapshot"',
    by_range('timestamp', INTERVAL '1 day'),
    create_default_indexes => FALSE
);

COMMENT ON TABLE "ProcessSnapshot" IS
'One row per process of a message. Hypertable on timestamp, chunks of 1 day.';
COMMENT ON COLUMN "ProcessSnapshot"."machineId" IS
'The Machine; no foreign key, the writer locks the Machine row and a trigger deletes.';
COMMENT ON COLUMN "ProcessSnapshot"."timestamp" IS 'When the guest took the sample; that of its SystemMetrics row.';
COMMENT ON COLUMN "ProcessSnapshot"."processId" IS 'Process id in the guest.';
COMMENT ON COLUMN "ProcessSnapshot"."parentPid" IS 'Process id of the parent.';
COMMENT ON COLUMN "ProcessSnapshot"."name" IS 'Name of the process.';
COMMENT ON COLUMN "ProcessSnapshot"."executablePath" IS 'Path of the program in the guest.';
COMMENT ON COLUMN "ProcessSnapshot"."commandLine" IS 'Command line, with secrets redacted unless the daemon is told otherwise.';
COMMENT ON COLUMN "ProcessSnapshot"."cpuUsagePercent" IS
'CPU in use, percent of one core: above 100 for a process that keeps several busy.';
COMMENT ON COLUMN "ProcessSnapshot"."memoryUsageKB" IS 'Resident memory, KiB.';
COMMENT ON COLUMN "ProcessSnapshot"."diskReadBytes" IS 'Read from disk since the process started, bytes.';
COMMENT ON COLUMN "ProcessSnapshot"."diskWriteBytes" IS 'Written to disk since the process started, bytes.';
COMMENT ON COLUMN "ProcessSnapshot"."status" IS 'Free text: running, sleeping, zombie, stopped and so on.';
COMMENT ON COLUMN "ProcessSnapshot"."startTime" IS 'When the process started, guest time.';
COMMENT ON CONSTRAINT "ProcessSnapshot_cpuUsagePercent_at_least_0_check" ON "ProcessSnapshot" IS
'CPU usage of a process is a finite percentage of one core, at least 0.';

CREATE TABLE "PortUsage" (
    "machineId" uuid NOT NULL,
    "timestamp" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "ordinal" integer NOT NULL,
    "port" integer NOT NULL,
    "protocol" text NOT NULL,
    "state" text NOT NULL,
    "processId" integer,
    "processName" text,
    "executablePath" text,
    "isListening" boolean NOT NULL DEFAULT FALSE,
    "connectionCount" integer NOT NULL DEFAULT 0,
    "lastActivity" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "PortUsage_pkey" PRIMARY KEY ("machineId", "timestamp", "ordinal"),
    CONSTRAINT "PortUsage_port_0_to_65535_check" CHECK ("port" BETWEEN 0 AND 65535)
);

SELECT create_hypertable(
    '"PortUsage"',
    by_range('timestamp', INTERVAL '1 day'),
    create_default_indexes => FALSE
);

COMMENT ON TABLE "PortUsage" IS
'One row per port, protocol, state and process of a message. Hypertable on timestamp, chunks of 1 day.';
COMMENT ON COLUMN "PortUsage"."machineId" IS
'The Machine; no foreign key, the writer locks the Machine row and a trigger deletes.';
COMMENT ON COLUMN "PortUsage"."timestamp" IS 'When the guest took the sample; that of its SystemMetrics row.';
COMMENT ON COLUMN "PortUsage"."ordinal" IS 'Place in the sorted list of the message, from 0.';
COMMENT ON COLUMN "PortUsage"."port" IS 'Local port, 0 to 65535.';
COMMENT ON COLUMN "PortUsage"."protocol" IS 'TCP or UDP.';
COMMENT ON COLUMN "PortUsage"."state" IS 'Free text: LISTEN, ESTABLISHED, CLOSE_WAIT and so on.';
COMMENT ON COLUMN "PortUsage"."processId" IS 'Process id in the guest of the owner of the socket.';
COMMENT ON COLUMN "PortUsage"."processName" IS 'Name of that process.';
COMMENT ON COLUMN "PortUsage"."executablePath" IS 'Path of its program in the guest.';
COMMENT ON COLUMN "PortUsage"."isListening" IS 'True when the port accepts connections or datagrams.';
COMMENT ON COLUMN "PortUsage"."connectionCount" IS 'Sockets in this state, count.';
COMMENT ON COLUMN "PortUsage"."lastActivity" IS 'When the port was last seen in use.';
COMMENT ON CONSTRAINT "PortUsage_port_0_to_65535_check" ON "PortUsage" IS
'A port is a number from 0 to 65535.';

CREATE TABLE "ApplicationUsageHistory" (
    "machineId" uuid NOT NULL,
    "timestamp" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "executablePath" text NOT NULL,
    "accessCount" integer NOT NULL,
    "totalUsageMinutes" integer NOT NULL,
    "isActive" boolean NOT NULL,
    CONSTRAINT "ApplicationUsageHistory_pkey" PRIMARY KEY ("machineId", "timestamp", "executablePath")
);

SELECT create_hypertable(
    '"ApplicationUsageHistory"',
    by_range('timestamp', INTERVAL '1 day'),
    create_default_indexes => FALSE
);

COMMENT ON TABLE "ApplicationUsageHistory" IS
'The series behind ApplicationUsage: one row per application of a message. Hypertable on timestamp, chunks of 1 day.';
COMMENT ON COLUMN "ApplicationUsageHistory"."machineId" IS
'The Machine; no foreign key, the writer locks the Machine row and a trigger deletes.';
COMMENT ON COLUMN "ApplicationUsageHistory"."timestamp" IS
'When the guest took the sample; that of its SystemMetrics row.';
COMMENT ON COLUMN "ApplicationUsageHistory"."executablePath" IS 'Path of the program in the guest.';
COMMENT ON COLUMN "ApplicationUsageHistory"."accessCount" IS 'Times it was started, as the guest counts, count.';
COMMENT ON COLUMN "ApplicationUsageHistory"."totalUsageMinutes" IS 'Time in use, as the guest counts, min.';
COMMENT ON COLUMN "ApplicationUsageHistory"."isActive" IS 'True when the guest reports it as in use or installed.';

CREATE TABLE "ApplicationUsage" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "machineId" uuid NOT NULL,
    "executablePath" text NOT NULL,
    "applicationName" text NOT NULL,
    "version" text,
    "description" text,
    "publisher" text,
    "lastAccessTime" timestamptz (3),
    "lastModifiedTime" timestamptz (3),
    "accessCount" integer NOT NULL DEFAULT 0,
    "totalUsageMinutes" integer NOT NULL DEFAULT 0,
    "iconData" bytea,
    "iconFormat" text,
    "fileSize" bigint,
    "firstSeen" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "lastSeen" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "isActive" boolean NOT NULL DEFAULT TRUE,
    CONSTRAINT "ApplicationUsage_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "ApplicationUsage_machineId_executablePath_key" UNIQUE ("machineId", "executablePath"),
    CONSTRAINT "ApplicationUsage_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE INDEX "ApplicationUsage_machineId_lastAccessTime_idx"
ON "ApplicationUsage" ("machineId", "lastAccessTime");
CREATE INDEX "ApplicationUsage_machineId_isActive_idx" ON "ApplicationUsage" ("machineId", "isActive");

COMMENT ON TABLE "ApplicationUsage" IS
'The applications of a machine as last reported: one row per machine and program.';
COMMENT ON COLUMN "ApplicationUsage"."id" IS 'Public identifier.';
COMMENT ON COLUMN "ApplicationUsage"."machineId" IS 'The machine it is installed on.';
COMMENT ON COLUMN "ApplicationUsage"."executablePath" IS 'Path of the program in the guest.';
COMMENT ON COLUMN "ApplicationUsage"."applicationName" IS 'Name for people.';
COMMENT ON COLUMN "ApplicationUsage"."version" IS 'Version as the guest gives it; the last one that was known.';
COMMENT ON COLUMN "ApplicationUsage"."description" IS 'What the program says of itself; the last one that was known.';
COMMENT ON COLUMN "ApplicationUsage"."publisher" IS 'Who made it; the last one that was known.';
COMMENT ON COLUMN "ApplicationUsage"."lastAccessTime" IS 'When it was last used, guest time.';
COMMENT ON COLUMN "ApplicationUsage"."lastModifiedTime" IS 'When its file last changed, guest time.';
COMMENT ON COLUMN "ApplicationUsage"."accessCount" IS 'Times it was started, as the guest counts, count.';
COMMENT ON COLUMN "ApplicationUsage"."totalUsageMinutes" IS 'Time in use, as the guest counts, min.';
COMMENT ON COLUMN "ApplicationUsage"."iconData" IS 'Its icon, 64 x 64 pixels, in the format of iconFormat; the last one that was known.';
COMMENT ON COLUMN "ApplicationUsage"."iconFormat" IS 'Format of iconData, such as png.';
COMMENT ON COLUMN "ApplicationUsage"."fileSize" IS 'Size of its file, bytes; the last one that was known.';
COMMENT ON COLUMN "ApplicationUsage"."firstSeen" IS 'When it was first reported, host time.';
COMMENT ON COLUMN "ApplicationUsage"."lastSeen" IS
'When it was last reported, host time; moves with a change of the row, and otherwise at most once a minute.';
COMMENT ON COLUMN "ApplicationUsage"."isActive" IS
'False when the guest says so or the machine''s newest list no longer has it.';

CREATE TABLE "WindowsService" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "machineId" uuid NOT NULL,
    "serviceName" text NOT NULL,
    "displayName" text NOT NULL,
    "description" text,
    "startType" text NOT NULL,
    "serviceType" text NOT NULL,
    "executablePath" text,
    "dependencies" jsonb,
    "currentState" text NOT NULL,
    "processId" integer,
    "lastStateChange" timestamptz (3),
    "stateChangeCount" integer NOT NULL DEFAULT 0,
    "isDefaultService" boolean NOT NULL DEFAULT FALSE,
    "usageScore" double precision DEFAULT 0,
    "firstSeen" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "lastSeen" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "WindowsService_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "WindowsService_machineId_serviceName_key" UNIQUE ("machineId", "serviceName"),
    CONSTRAINT "WindowsService_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "WindowsService_usageScore_0_to_100_check" CHECK ("usageScore" BETWEEN 0 AND 100)
);

CREATE INDEX "WindowsService_machineId_currentState_idx" ON "WindowsService" ("machineId", "currentState");
CREATE INDEX "WindowsService_machineId_isDefaultService_idx"
ON "WindowsService" ("machineId", "isDefaultService");

COMMENT ON TABLE "WindowsService" IS
'The services of a machine as last reported: one row per machine and service.';
COMMENT ON COLUMN "WindowsService"."id" IS 'Public identifier.';
COMMENT ON COLUMN "WindowsService"."machineId" IS 'The machine it runs on.';
COMMENT ON COLUMN "WindowsService"."serviceName" IS 'Name of the service in the guest.';
COMMENT ON COLUMN "WindowsService"."displayName" IS 'Name for people.';
COMMENT ON COLUMN "WindowsService"."description" IS 'What the service says of itself; the last one that was known.';
COMMENT ON COLUMN "WindowsService"."startType" IS 'Free text: automatic, manual, disabled, delayed-auto and so on.';
COMMENT ON COLUMN "WindowsService"."serviceType" IS 'Free text: win32, driver, kernel-driver and so on.';
COMMENT ON COLUMN "WindowsService"."executablePath" IS 'Path of its program in the guest; the last one that was known.';
COMMENT ON COLUMN "WindowsService"."dependencies" IS 'Array of service names it needs; the last one that was known.';
COMMENT ON COLUMN "WindowsService"."currentState" IS 'Free text: running, stopped, paused, start-pending and so on.';
COMMENT ON COLUMN "WindowsService"."processId" IS 'Process id in the guest; NULL when it does not run.';
COMMENT ON COLUMN "WindowsService"."lastStateChange" IS
'When a change of state was last seen, host time; NULL before the first.';
COMMENT ON COLUMN "WindowsService"."stateChangeCount" IS 'Changes of state seen since firstSeen, count.';
COMMENT ON COLUMN "WindowsService"."isDefaultService" IS 'True for a service that comes with the operating system.';
COMMENT ON COLUMN "WindowsService"."usageScore" IS 'How much it is used, 0 to 100; the platform''s to fill.';
COMMENT ON COLUMN "WindowsService"."firstSeen" IS 'When it was first reported, host time.';
COMMENT ON COLUMN "WindowsService"."lastSeen" IS
'When it was last reported, host time; moves with a change of the row, and otherwise at most once a minute.';
COMMENT ON CONSTRAINT "WindowsService_usageScore_0_to_100_check" ON "WindowsService" IS
'The usage score of a service is a number from 0 to 100.';

CREATE TABLE "ServiceStateHistory" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "serviceId" uuid NOT NULL,
    "fromState" text,
    "toState" text NOT NULL,
    "reason" text,
    "timestamp" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "ServiceStateHistory_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "ServiceStateHistory_serviceId_fkey" FOREIGN KEY ("serviceId")
    REFERENCES "WindowsService" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE INDEX "ServiceStateHistory_serviceId_timestamp_idx"
ON "ServiceStateHistory" ("serviceId", "timestamp");

COMMENT ON TABLE "ServiceStateHistory" IS 'One row per change of state of a service.';
COMMENT ON COLUMN "ServiceStateHistory"."id" IS 'Public identifier.';
COMMENT ON COLUMN "ServiceStateHistory"."serviceId" IS 'The service.';
COMMENT ON COLUMN "ServiceStateHistory"."fromState" IS 'State before.';
COMMENT ON COLUMN "ServiceStateHistory"."toState" IS 'State after.';
COMMENT ON COLUMN "ServiceStateHistory"."reason" IS
'manual, automatic, dependency or error; guestd writes automatic for what it observes.';
COMMENT ON COLUMN "ServiceStateHistory"."timestamp" IS 'When the message that shows the new state was received, host time.';
