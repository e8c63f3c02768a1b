-- compat: 1
-- The fleet as a whole by the minute, and its processes by the hour, so that neither is added up from every machine when it
-- is asked for. docs/decisions/0048 says how they are kept exact.

CREATE TABLE "SystemFleetMinute" (
    "bucket" timestamptz (3) NOT NULL,
    "machines" integer NOT NULL,
    "cpuUsagePercentAvg" double precision NOT NULL,
    "cpuUsagePercentMax" double precision NOT NULL,
    "usedMemoryKBAvg" double precision NOT NULL,
    CONSTRAINT "SystemFleetMinute_pkey" PRIMARY KEY ("bucket")
);

SELECT create_hypertable('"SystemFleetMinute"', by_range('bucket', INTERVAL '180 days'), create_default_indexes => FALSE);

COMMENT ON TABLE "SystemFleetMinute" IS
'SystemMetricsMinute of all machines together by minute. Ask SystemFleet_1m. Hypertable on bucket, chunks of 180 days.';
COMMENT ON COLUMN "SystemFleetMinute"."bucket" IS 'Where the minute begins; minutes of UTC.';
COMMENT ON COLUMN "SystemFleetMinute"."machines" IS 'Machines with samples in it, count.';
COMMENT ON COLUMN "SystemFleetMinute"."cpuUsagePercentAvg" IS 'CPU in use, mean of the machines, percent, 0 to 100.';
COMMENT ON COLUMN "SystemFleetMinute"."cpuUsagePercentMax" IS 'CPU in use, the highest sample, percent, 0 to 100.';
COMMENT ON COLUMN "SystemFleetMinute"."usedMemoryKBAvg" IS 'Memory in use, mean of the machines, KiB.';

CREATE TABLE "ProcessFleetHour" (
    "bucket" timestamptz (3) NOT NULL,
    "name" text NOT NULL,
    "machines" integer NOT NULL,
    "cpuUsagePercent" double precision NOT NULL,
    "memoryUsageKB" double precision NOT NULL,
    CONSTRAINT "ProcessFleetHour_pkey" PRIMARY KEY ("bucket", "name")
);

SELECT create_hypertable('"ProcessFleetHour"', by_range('bucket', INTERVAL '30 days'), create_default_indexes => FALSE);

COMMENT ON TABLE "ProcessFleetHour" IS
'ProcessUsageHour of all machines together by hour and name. Hypertable on bucket, chunks of 30 days.';
COMMENT ON COLUMN "ProcessFleetHour"."bucket" IS 'Where the hour begins; hours of UTC.';
COMMENT ON COLUMN "ProcessFleetHour"."name" IS 'Name of the processes.';
COMMENT ON COLUMN "ProcessFleetHour"."machines" IS 'Machines on which processes of the name ran, count.';
COMMENT ON COLUMN "ProcessFleetHour"."cpuUsagePercent" IS
'Their CPU: mean of the samples of each machine, added up over machines, percent of one core.';
COMMENT ON COLUMN "ProcessFleetHour"."memoryUsageKB" IS
'Their resident memory: mean of the samples of each machine, added up over machines, KiB.';

ALTER TABLE "RetentionSetting" DROP CONSTRAINT "RetentionSetting_relation_that_is_pruned_check";
ALTER TABLE "RetentionSetting" ADD CONSTRAINT "RetentionSetting_relation_that_is_pruned_check" CHECK (
    "relation" IN (
        'SystemMetrics', 'ProcessSnapshot', 'PortUsage', 'ApplicationUsageHistory', 'SystemMetricsMinute',
        'SystemMetricsHour', 'ProcessUsageHour', 'ApplicationUsageDay', 'ListeningPortDay', 'SystemFleetMinute',
        'ProcessFleetHour', 'ApplicationUsage', 'QuarantinedFrame'
    )
);
COMMENT ON CONSTRAINT "RetentionSetting_relation_that_is_pruned_check" ON "RetentionSetting" IS
'A retention is set for a series, a roll-up, ApplicationUsage or QuarantinedFrame.';

INSERT INTO "RetentionSetting" ("relation", "keepDays") VALUES
('SystemFleetMinute', 1825),
('ProcessFleetHour', 1825);

ALTER TABLE "RollupPending" DROP CONSTRAINT "RollupPending_unit_minute_or_hour_check";
ALTER TABLE "RollupPending" ADD CONSTRAINT "RollupPending_unit_minute_hour_or_fleet_check" CHECK (
    "unit" IN ('minute', 'hour', 'fleet')
);
COMMENT ON CONSTRAINT "RollupPending_unit_minute_hour_or_fleet_check" ON "RollupPending" IS
'What waits is a minute or an hour of a machine, or an hour of the fleet.';
COMMENT ON COLUMN "RollupPending"."unit" IS 'minute or hour, of the machine; fleet: an hour of all machines together.';
COMMENT ON COLUMN "RollupPending"."machineId" IS 'The Machine; of the fleet all zeros.';

-- What was rolled up before is added up by and by, the newest first.
INSERT INTO "RollupState" ("relation", "coveredUntil")
SELECT
    fleet."relation",
    state."coveredUntil"
FROM "RollupState" AS state
INNER JOIN (
    VALUES ('SystemMetricsMinute', 'SystemFleetMinute'), ('ProcessUsageHour', 'ProcessFleetHour')
) AS fleet ("feed", "relation") ON state."relation" = fleet."feed";

INSERT INTO "RollupPending" ("unit", "bucket", "machineId")
SELECT DISTINCT
    'fleet' AS "unit",
    date_trunc('hour', "bucket", 'UTC') AS "bucket",
    '00000000-0000-0000-0000-000000000000'::uuid AS "machineId"
FROM "SystemMetricsMinute";
