-- Views of the roll-ups: the rows of the roll-up tables, and newer ones computed from the series. The same on both
-- editions: docs/decisions/0039. %(rollup_...)s are lists of columns: gueststore.column_lists.

CREATE OR REPLACE VIEW "SystemMetrics_1m" AS
SELECT
    "machineId",
    "bucket",
    %(rollup_names)s
FROM "SystemMetricsMinute"
WHERE
    "bucket" < (
        SELECT state."coveredUntil" FROM "RollupState" AS state
        WHERE state."relation" = 'SystemMetricsMinute'
    )
UNION ALL
SELECT
    machine."id",
    rolled.*
FROM "Machine" AS machine
CROSS JOIN LATERAL (
    SELECT
        date_trunc('minute', sample."timestamp", 'UTC') AS "bucket",
        %(rollup_of_samples)s
    FROM "SystemMetrics" AS sample
    WHERE
        sample."machineId" = machine."id"
        AND sample."timestamp" >= (
            SELECT state."coveredUntil" FROM "RollupState" AS state
            WHERE state."relation" = 'SystemMetricsMinute'
        )
    GROUP BY date_trunc('minute', sample."timestamp", 'UTC')
) AS rolled;

COMMENT ON VIEW "SystemMetrics_1m" IS 'SystemMetrics by machine and minute, up to the last sample.';
COMMENT ON COLUMN "SystemMetrics_1m"."machineId" IS 'The Machine.';
COMMENT ON COLUMN "SystemMetrics_1m"."bucket" IS 'Start of the minute, UTC.';
COMMENT ON COLUMN "SystemMetrics_1m"."samples" IS 'Samples in it, count.';
COMMENT ON COLUMN "SystemMetrics_1m"."cpuUsagePercentAvg" IS 'CPU in use, mean of the samples, percent, 0 to 100.';
COMMENT ON COLUMN "SystemMetrics_1m"."cpuUsagePercentMax" IS 'CPU in use, the highest sample, percent, 0 to 100.';
COMMENT ON COLUMN "SystemMetrics_1m"."usedMemoryKBAvg" IS 'Memory in use, mean of the samples, KiB.';
COMMENT ON COLUMN "SystemMetrics_1m"."usedMemoryKBMax" IS 'Memory in use, the highest sample, KiB.';
COMMENT ON COLUMN "SystemMetrics_1m"."totalMemoryKBMax" IS 'Memory, KiB.';
COMMENT ON COLUMN "SystemMetrics_1m"."availableMemoryKBMin" IS
'Memory that programs could still get, the lowest sample, KiB.';
COMMENT ON COLUMN "SystemMetrics_1m"."swapUsedKBMax" IS
'Swap in use, the highest sample, KiB; NULL for guests without swap.';
COMMENT ON COLUMN "SystemMetrics_1m"."diskReadBytesPerSecAvg" IS 'Read from disks, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1m"."diskWriteBytesPerSecAvg" IS 'Written to disks, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1m"."networkReceivedBytesPerSecAvg" IS
'Received over all interfaces, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1m"."networkSentBytesPerSecAvg" IS
'Sent over all interfaces, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1m"."load1minAvg" IS
'Runnable tasks over a minute, mean of the samples; NULL on Windows.';

CREATE OR REPLACE VIEW "SystemMetrics_1h" AS
SELECT
    "machineId",
    "bucket",
    %(rollup_names)s
FROM "SystemMetricsHour"
WHERE
    "bucket" < (
        SELECT state."coveredUntil" FROM "RollupState" AS state
        WHERE state."relation" = 'SystemMetricsHour'
    )
UNION ALL
SELECT
    minute."machineId",
    date_trunc('hour', minute."bucket", 'UTC') AS "bucket",
    %(rollup_of_minutes)s
FROM "SystemMetrics_1m" AS minute
WHERE
    minute."bucket" >= (
        SELECT state."coveredUntil" FROM "RollupState" AS state
        WHERE state."relation" = 'SystemMetricsHour'
    )
GROUP BY minute."machineId", date_trunc('hour', minute."bucket", 'UTC');

COMMENT ON VIEW "SystemMetrics_1h" IS 'SystemMetrics by machine and hour, up to the last sample.';
COMMENT ON COLUMN "SystemMetrics_1h"."machineId" IS 'The Machine.';
COMMENT ON COLUMN "SystemMetrics_1h"."bucket" IS 'Start of the hour, UTC.';
COMMENT ON COLUMN "SystemMetrics_1h"."samples" IS 'Samples in it, count.';
COMMENT ON COLUMN "SystemMetrics_1h"."cpuUsagePercentAvg" IS 'CPU in use, mean of the samples, percent, 0 to 100.';
COMMENT ON COLUMN "SystemMetrics_1h"."cpuUsagePercentMax" IS 'CPU in use, the highest sample, percent, 0 to 100.';
COMMENT ON COLUMN "SystemMetrics_1h"."usedMemoryKBAvg" IS 'Memory in use, mean of the samples, KiB.';
COMMENT ON COLUMN "SystemMetrics_1h"."usedMemoryKBMax" IS 'Memory in use, the highest sample, KiB.';
COMMENT ON COLUMN "SystemMetrics_1h"."totalMemoryKBMax" IS 'Memory, KiB.';
COMMENT ON COLUMN "SystemMetrics_1h"."availableMemoryKBMin" IS
'Memory that programs could still get, the lowest sample, KiB.';
COMMENT ON COLUMN "SystemMetrics_1h"."swapUsedKBMax" IS
'Swap in use, the highest sample, KiB; NULL for guests without swap.';
COMMENT ON COLUMN "SystemMetrics_1h"."diskReadBytesPerSecAvg" IS 'Read from disks, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1h"."diskWriteBytesPerSecAvg" IS 'Written to disks, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1h"."networkReceivedBytesPerSecAvg" IS
'Received over all interfaces, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1h"."networkSentBytesPerSecAvg" IS
'Sent over all interfaces, mean of the samples, bytes/s.';
COMMENT ON COLUMN "SystemMetrics_1h"."load1minAvg" IS
'Runnable tasks over a minute, mean of the samples; NULL on Windows.';

CREATE OR REPLACE VIEW "SystemFleet_1m" AS
SELECT
    "bucket",
    "machines",
    "cpuUsagePercentAvg",
    "cpuUsagePercentMax",
    "usedMemoryKBAvg"
FROM "SystemFleetMinute"
WHERE
    "bucket" < (
        SELECT state."coveredUntil" FROM "RollupState" AS state
        WHERE state."relation" = 'SystemFleetMinute'
    )
UNION ALL
SELECT
    newer."bucket",
    count(*)::integer AS "machines",
    avg(public.guestd_bounded(newer."cpuUsagePercentAvg")) AS "cpuUsagePercentAvg",
    max(newer."cpuUsagePercentMax") AS "cpuUsagePercentMax",
    avg(public.guestd_bounded(newer."usedMemoryKBAvg")) AS "usedMemoryKBAvg"
FROM "SystemMetrics_1m" AS newer
WHERE
    newer."bucket" >= (
        SELECT state."coveredUntil" FROM "RollupState" AS state
        WHERE state."relation" = 'SystemFleetMinute'
    )
GROUP BY newer."bucket";

COMMENT ON VIEW "SystemFleet_1m" IS 'SystemMetrics of all machines together by minute, up to the last sample.';
COMMENT ON COLUMN "SystemFleet_1m"."bucket" IS 'Start of the minute, UTC.';
COMMENT ON COLUMN "SystemFleet_1m"."machines" IS 'Machines with samples in it, count.';
COMMENT ON COLUMN "SystemFleet_1m"."cpuUsagePercentAvg" IS 'CPU in use, mean of the machines, percent, 0 to 100.';
COMMENT ON COLUMN "SystemFleet_1m"."cpuUsagePercentMax" IS 'CPU in use, the highest sample, percent, 0 to 100.';
COMMENT ON COLUMN "SystemFleet_1m"."usedMemoryKBAvg" IS 'Memory in use, mean of the machines, KiB.';

CREATE OR REPLACE VIEW "ProcessUsage_1h" AS
SELECT
    "machineId",
    "bucket",
    "name",
    "samples",
    "cpuUsagePercentSum",
    public.guestd_bounded("cpuUsagePercentSum") / greatest("samples", 1) AS "cpuUsagePercentAvg",
    "cpuUsagePercentMax",
    "memoryUsageKBSum",
    "memoryUsageKBSum"::double precision / greatest("samples", 1) AS "memoryUsageKBAvg",
    "memoryUsageKBMax"
FROM "ProcessUsageHour"
WHERE
    "bucket" < (
        SELECT state."coveredUntil" FROM "RollupState" AS state
        WHERE state."relation" = 'ProcessUsageHour'
    )
UNION ALL
SELECT
    machine."id",
    used."bucket",
    used."name",
    used."samples",
    used."cpuUsagePercentSum",
    used."cpuUsagePercentSum" / used."samples" AS "cpuUsagePercentAvg",
    used."cpuUsagePercentMax",
    used."memoryUsageKBSum",
    used."memoryUsageKBSum"::double precision / used."samples" AS "memoryUsageKBAvg",
    used."memoryUsageKBMax"
FROM "Machine" AS machine
CROSS JOIN
    LATERAL public.guestd_process_usage(
        machine."id",
        (
            SELECT state."coveredUntil" FROM "RollupState" AS state
            WHERE state."relation" = 'ProcessUsageHour'
        ),
        'infinity'
    ) AS used;

COMMENT ON VIEW "ProcessUsage_1h" IS 'ProcessSnapshot by machine, hour and name, up to the last sample.';
COMMENT ON COLUMN "ProcessUsage_1h"."machineId" IS 'The Machine.';
COMMENT ON COLUMN "ProcessUsage_1h"."bucket" IS 'Start of the hour, UTC.';
COMMENT ON COLUMN "ProcessUsage_1h"."name" IS 'Name of the processes.';
COMMENT ON COLUMN "ProcessUsage_1h"."samples" IS 'Rows of ProcessSnapshot in it, count.';
COMMENT ON COLUMN "ProcessUsage_1h"."cpuUsagePercentSum" IS 'Sum of their CPU, percent of one core times rows.';
COMMENT ON COLUMN "ProcessUsage_1h"."cpuUsagePercentAvg" IS
'CPU of one process of the name, mean, percent of one core.';
COMMENT ON COLUMN "ProcessUsage_1h"."cpuUsagePercentMax" IS 'The highest CPU of one row, percent of one core.';
COMMENT ON COLUMN "ProcessUsage_1h"."memoryUsageKBSum" IS 'Sum of their resident memory, KiB times rows.';
COMMENT ON COLUMN "ProcessUsage_1h"."memoryUsageKBAvg" IS 'Resident memory of one process of the name, mean, KiB.';
COMMENT ON COLUMN "ProcessUsage_1h"."memoryUsageKBMax" IS 'The highest resident memory of one row, KiB.';

CREATE OR REPLACE VIEW "ApplicationUsage_1d" AS
SELECT
    "machineId",
    "bucket",
    "executablePath",
    -- An agent that lost its state counts from 0 again, and a day has 1,440 minutes.
    least(max("totalUsageMinutesMax")::bigint - min("totalUsageMinutesMin"), 1440)::integer AS "usageMinutes",
    least(max("accessCountMax")::bigint - min("accessCountMin"), 2147483647)::integer AS "starts"
FROM (
    SELECT
        "machineId",
        "bucket",
        "executablePath",
        "totalUsageMinutesMin",
        "totalUsageMinutesMax",
        "accessCountMin",
        "accessCountMax"
    FROM "ApplicationUsageDay"
    UNION ALL
    SELECT
        machine."id",
        newer.*
    FROM "Machine" AS machine
    CROSS JOIN LATERAL (
        SELECT
            date_trunc('day', usage."timestamp", 'UTC') AS "bucket",
            usage."executablePath",
            min(usage."totalUsageMinutes"),
            max(usage."totalUsageMinutes"),
            min(usage."accessCount"),
            max(usage."accessCount")
        FROM "ApplicationUsageHistory" AS usage
        WHERE
            usage."machineId" = machine."id"
            AND usage."timestamp" >= (
                SELECT state."coveredUntil" FROM "RollupState" AS state
                WHERE state."relation" = 'ApplicationUsageDay'
            )
        GROUP BY date_trunc('day', usage."timestamp", 'UTC'), usage."executablePath"
    ) AS newer
) AS part
GROUP BY "machineId", "bucket", "executablePath";

COMMENT ON VIEW "ApplicationUsage_1d" IS 'Applications by machine and day, up to the last sample.';
COMMENT ON COLUMN "ApplicationUsage_1d"."machineId" IS 'The Machine.';
COMMENT ON COLUMN "ApplicationUsage_1d"."bucket" IS 'Start of the day, UTC.';
COMMENT ON COLUMN "ApplicationUsage_1d"."executablePath" IS 'Path of the program in the guest.';
COMMENT ON COLUMN "ApplicationUsage_1d"."usageMinutes" IS
'Time in use between the first and the last sample of the day, as counted by the guest, at most 1440, min.';
COMMENT ON COLUMN "ApplicationUsage_1d"."starts" IS 'Starts between those samples, as counted by the guest, count.';

CREATE OR REPLACE VIEW "ListeningPort_1d" AS
SELECT
    "machineId",
    "bucket",
    "port",
    "protocol",
    "processName",
    max("executablePath" COLLATE "C") AS "executablePath",
    min("firstSeen") AS "firstSeen",
    max("lastSeen") AS "lastSeen",
    max("connectionCountMax") AS "connectionCountMax"
FROM (
    SELECT
        "machineId",
        "bucket",
        "port",
        "protocol",
        "processName",
        "executablePath",
        "firstSeen",
        "lastSeen",
        "connectionCountMax"
    FROM "ListeningPortDay"
    UNION ALL
    SELECT
        machine."id",
        newer.*
    FROM "Machine" AS machine
    CROSS JOIN LATERAL (
        SELECT
            date_trunc('day', usage."timestamp", 'UTC') AS "bucket",
            usage."port",
            usage."protocol",
            coalesce(usage."processName", '') AS "processName",
            max(usage."executablePath" COLLATE "C"),
            min(usage."timestamp"),
            max(usage."timestamp"),
            max(usage."connectionCount")
        FROM "PortUsage" AS usage
        WHERE
            usage."machineId" = machine."id"
            AND usage."isListening"
            AND usage."timestamp" >= (
                SELECT state."coveredUntil" FROM "RollupState" AS state
                WHERE state."relation" = 'ListeningPortDay'
            )
        GROUP BY
            date_trunc('day', usage."timestamp", 'UTC'),
            usage."port",
            usage."protocol",
            coalesce(usage."processName", '')
    ) AS newer
) AS part
GROUP BY "machineId", "bucket", "port", "protocol", "processName";

COMMENT ON VIEW "ListeningPort_1d" IS
'Listening ports by machine, day and process, up to the last sample.';
COMMENT ON COLUMN "ListeningPort_1d"."machineId" IS 'The Machine.';
COMMENT ON COLUMN "ListeningPort_1d"."bucket" IS 'Start of the day, UTC.';
COMMENT ON COLUMN "ListeningPort_1d"."port" IS 'Local port, 0 to 65535.';
COMMENT ON COLUMN "ListeningPort_1d"."protocol" IS 'TCP or UDP.';
COMMENT ON COLUMN "ListeningPort_1d"."processName" IS
'Name of the process that listened; empty when the guest did not report it.';
COMMENT ON COLUMN "ListeningPort_1d"."executablePath" IS
'Path of its program in the guest; of several, the last in order of text.';
COMMENT ON COLUMN "ListeningPort_1d"."firstSeen" IS 'The first sample of the day in which it listened.';
COMMENT ON COLUMN "ListeningPort_1d"."lastSeen" IS 'The last sample of the day in which it listened.';
COMMENT ON COLUMN "ListeningPort_1d"."connectionCountMax" IS 'Listening sockets, the maximum of one sample, count.';

CREATE OR REPLACE VIEW "RetentionDue" AS
SELECT
    bound."relation",
    bound."keepDays",
    bound."cutoff",
    bound."cutoff" < bound."wanted" AS "isHeldBack",
    CASE bound."relation"
        WHEN 'ApplicationUsage'
            THEN (
                SELECT count(*) FROM "ApplicationUsage" AS inactive
                WHERE NOT inactive."isActive" AND inactive."lastSeen" < bound."cutoff"
            )
        WHEN 'QuarantinedFrame'
            THEN (
                SELECT count(*) FROM "QuarantinedFrame" AS aside
                WHERE aside."createdAt" < bound."cutoff"
            )
        WHEN 'VmPort'
            THEN (
                SELECT count(*) FROM "VmPort" AS port
                WHERE port."isAutomatic" AND NOT port."running" AND port."lastSeen" < bound."cutoff"
            )
        WHEN 'WindowsService'
            THEN (
                SELECT count(*) FROM "WindowsService" AS gone
                WHERE
                    gone."lastSeen" < bound."cutoff"
                    AND gone."machineId" IN (
                        SELECT listed."machineId" FROM "WindowsService" AS listed
                        WHERE listed."lastSeen" >= bound."cutoff"
                    )
            )
        WHEN 'ServiceStateHistory'
            THEN (
                SELECT count(*) FROM "ServiceStateHistory" AS changed
                WHERE changed."timestamp" < bound."cutoff"
            )
        ELSE (
            SELECT count(*) FROM timescaledb_information.chunks AS chunk
            WHERE
                chunk."hypertable_schema" = 'public'
                AND chunk."hypertable_name" = bound."relation"
                AND chunk."range_end" <= bound."cutoff"
        )
    END AS "due"
FROM (
    SELECT
        setting."relation",
        setting."keepDays",
        now() - make_interval(hours => 24 * setting."keepDays") AS "wanted",
        least(
            now() - make_interval(hours => 24 * setting."keepDays"), public.guestd_covered_until(setting."relation")
        ) AS "cutoff"
    FROM "RetentionSetting" AS setting
) AS bound;

COMMENT ON VIEW "RetentionDue" IS 'What the next retention run drops.';
COMMENT ON COLUMN "RetentionDue"."relation" IS 'The table.';
COMMENT ON COLUMN "RetentionDue"."keepDays" IS 'RetentionSetting.keepDays.';
COMMENT ON COLUMN "RetentionDue"."cutoff" IS 'Data older than this is dropped.';
COMMENT ON COLUMN "RetentionDue"."isHeldBack" IS 'True when older data is kept because it is not rolled up yet.';
COMMENT ON COLUMN "RetentionDue"."due" IS 'Chunks, or rows of a plain table, that the next run drops, count.';
