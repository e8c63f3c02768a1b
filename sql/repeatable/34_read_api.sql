-- Views and functions for people and dashboards; each uses an index or a roll-up (tests/integration/schema/test_plans.py).
-- %(series_...)s are lists of columns: gueststore.column_lists.

CREATE OR REPLACE VIEW "MachineLatest" AS
SELECT
    machine."id",
    machine."name",
    machine."internalName",
    machine."status",
    machine."departmentId",
    machine."hostId",
    latest."timestamp",
    latest."receivedAt",
    latest."cpuUsagePercent",
    latest."totalMemoryKB",
    latest."usedMemoryKB",
    latest."availableMemoryKB",
    latest."swapUsedKB",
    latest."diskUsageStats",
    latest."diskIOStats",
    latest."networkStats",
    latest."uptime",
    latest."loadAverage"
FROM "Machine" AS machine
LEFT JOIN LATERAL (
    SELECT sample.*
    FROM "SystemMetrics" AS sample
    WHERE sample."machineId" = machine."id"
    ORDER BY sample."timestamp" DESC
    LIMIT 1
) AS latest ON TRUE;

COMMENT ON VIEW "MachineLatest" IS 'Every machine with its latest sample; NULLs for a machine without samples.';
COMMENT ON COLUMN "MachineLatest"."id" IS 'Machine.id.';
COMMENT ON COLUMN "MachineLatest"."name" IS 'Name for people.';
COMMENT ON COLUMN "MachineLatest"."internalName" IS 'Name of the libvirt domain.';
COMMENT ON COLUMN "MachineLatest"."status" IS 'Machine.status.';
COMMENT ON COLUMN "MachineLatest"."departmentId" IS 'The department it belongs to.';
COMMENT ON COLUMN "MachineLatest"."hostId" IS 'The host that runs it.';
COMMENT ON COLUMN "MachineLatest"."timestamp" IS 'When the guest took the sample.';
COMMENT ON COLUMN "MachineLatest"."receivedAt" IS 'When guestd received it, host time.';
COMMENT ON COLUMN "MachineLatest"."cpuUsagePercent" IS 'CPU in use over all cores, percent, 0 to 100.';
COMMENT ON COLUMN "MachineLatest"."totalMemoryKB" IS 'Memory, KiB.';
COMMENT ON COLUMN "MachineLatest"."usedMemoryKB" IS 'Memory in use, KiB.';
COMMENT ON COLUMN "MachineLatest"."availableMemoryKB" IS 'Memory that programs can still get, KiB.';
COMMENT ON COLUMN "MachineLatest"."swapUsedKB" IS 'Swap in use, KiB.';
COMMENT ON COLUMN "MachineLatest"."diskUsageStats" IS 'As in SystemMetrics.';
COMMENT ON COLUMN "MachineLatest"."diskIOStats" IS 'As in SystemMetrics.';
COMMENT ON COLUMN "MachineLatest"."networkStats" IS 'As in SystemMetrics.';
COMMENT ON COLUMN "MachineLatest"."uptime" IS 'Time since the guest booted, s.';
COMMENT ON COLUMN "MachineLatest"."loadAverage" IS 'As in SystemMetrics.';

CREATE OR REPLACE VIEW "ListeningPort" AS
SELECT
    machine."id" AS "machineId",
    usage."timestamp",
    usage."port",
    usage."protocol",
    usage."processId",
    usage."processName",
    usage."executablePath",
    usage."connectionCount"
FROM "Machine" AS machine
CROSS JOIN
    LATERAL (
        SELECT sample."timestamp"
        FROM "PortUsage" AS sample
        WHERE sample."machineId" = machine."id"
        ORDER BY sample."timestamp" DESC
        LIMIT 1
    ) AS latest
CROSS JOIN LATERAL (
    SELECT sample.*
    FROM "PortUsage" AS sample
    WHERE sample."machineId" = machine."id" AND sample."timestamp" = latest."timestamp" AND sample."isListening"
    -- OFFSET 0 keeps the planner from joining the rows of all machines: machine by machine is faster.
    OFFSET 0
) AS usage;

COMMENT ON VIEW "ListeningPort" IS 'The listening ports of each machine at its last sample with ports, and the process of each.';
COMMENT ON COLUMN "ListeningPort"."machineId" IS 'The Machine.';
COMMENT ON COLUMN "ListeningPort"."timestamp" IS 'When the guest took the sample.';
COMMENT ON COLUMN "ListeningPort"."port" IS 'Local port, 0 to 65535.';
COMMENT ON COLUMN "ListeningPort"."protocol" IS 'TCP or UDP.';
COMMENT ON COLUMN "ListeningPort"."processId" IS 'Id of the process in the guest that owns the socket.';
COMMENT ON COLUMN "ListeningPort"."processName" IS 'Name of that process.';
COMMENT ON COLUMN "ListeningPort"."executablePath" IS 'Path of its program in the guest.';
COMMENT ON COLUMN "ListeningPort"."connectionCount" IS 'Sockets in this state, count.';

CREATE OR REPLACE VIEW "ApplicationUse" AS
SELECT
    "machineId",
    "id",
    "applicationName",
    "executablePath",
    "publisher",
    "version",
    "lastAccessTime",
    "accessCount",
    "totalUsageMinutes",
    coalesce("lastAccessTime" >= now() - INTERVAL '720 hours', FALSE) AS "isUsed"
FROM "ApplicationUsage"
WHERE "isActive";

COMMENT ON VIEW "ApplicationUse" IS 'Installed applications, and whether each was used in the last 30 days.';
COMMENT ON COLUMN "ApplicationUse"."machineId" IS 'The machine it is installed on.';
COMMENT ON COLUMN "ApplicationUse"."id" IS 'ApplicationUsage.id.';
COMMENT ON COLUMN "ApplicationUse"."applicationName" IS 'Name for people.';
COMMENT ON COLUMN "ApplicationUse"."executablePath" IS 'Path of the program in the guest.';
COMMENT ON COLUMN "ApplicationUse"."publisher" IS 'Publisher.';
COMMENT ON COLUMN "ApplicationUse"."version" IS 'Version as reported by the guest.';
COMMENT ON COLUMN "ApplicationUse"."lastAccessTime" IS 'When it was last used, guest time; NULL means unknown.';
COMMENT ON COLUMN "ApplicationUse"."accessCount" IS 'Starts, as counted by the guest, count.';
COMMENT ON COLUMN "ApplicationUse"."totalUsageMinutes" IS 'Time in use, as counted by the guest, min.';
COMMENT ON COLUMN "ApplicationUse"."isUsed" IS 'True when it was used in the last 30 days; false also when unknown.';

CREATE OR REPLACE VIEW "StateChange" AS
SELECT
    changed."timestamp" AS "occurredAt",
    changed."id",
    service."machineId",
    'service' AS "kind",
    service."serviceName" AS "name",
    changed."fromState",
    changed."toState",
    changed."reason"
FROM "WindowsService" AS service
CROSS JOIN
    LATERAL (
        SELECT history.*
        FROM "ServiceStateHistory" AS history
        WHERE history."serviceId" = service."id"
        -- OFFSET 0 keeps the planner from a join, which would read the history of the services of all machines.
        OFFSET 0
    ) AS changed
UNION ALL
SELECT
    "occurredAt",
    "id",
    "machineId",
    'machine' AS "kind",
    "name",
    NULL AS "fromState",
    "action" AS "toState",
    "reason"
FROM "ReconcileEvent";

COMMENT ON VIEW "StateChange" IS 'State changes of services in guests, and the actions of guestd on machines and their status.';
COMMENT ON COLUMN "StateChange"."occurredAt" IS 'When it happened, server or host time.';
COMMENT ON COLUMN "StateChange"."id" IS 'ServiceStateHistory.id or ReconcileEvent.id.';
COMMENT ON COLUMN "StateChange"."machineId" IS 'The machine; NULL when it has been deleted.';
COMMENT ON COLUMN "StateChange"."kind" IS 'service or machine.';
COMMENT ON COLUMN "StateChange"."name" IS 'Name of the service or the domain.';
COMMENT ON COLUMN "StateChange"."fromState" IS 'State of the service before the change; NULL for the first one.';
COMMENT ON COLUMN "StateChange"."toState" IS 'State of the service after the change, or the action on the machine.';
COMMENT ON COLUMN "StateChange"."reason" IS 'Reason of the change.';

CREATE OR REPLACE FUNCTION public.guestd_resolution(since timestamptz, until timestamptz, points integer) RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- The finest resolution that retention still keeps and that returns at most about that many points.
    SELECT CASE
        WHEN until - since <= points * INTERVAL '1 minute' AND since >= now() - make_interval(hours => 24 * coalesce((
            SELECT setting."keepDays" FROM public."RetentionSetting" AS setting
            WHERE setting."relation" = 'SystemMetrics'
        ), 36500)) THEN 'raw'
        -- Up to four times as many minutes: they are cheap to read; for longer ranges hours show as much.
        WHEN until - since <= points * INTERVAL '4 minutes' AND since >= now() - make_interval(hours => 24 * coalesce((
            SELECT setting."keepDays" FROM public."RetentionSetting" AS setting
            WHERE setting."relation" = 'SystemMetricsMinute'
        ), 36500)) THEN 'minute'
        ELSE 'hour'
    END
$$;

COMMENT ON FUNCTION public.guestd_resolution(timestamptz, timestamptz, integer) IS
'The finest resolution (raw, minute or hour) that returns at most about that many points for a range.';

CREATE OR REPLACE FUNCTION public.guestd_machine_series(
    machine uuid, since timestamptz, until timestamptz, points integer DEFAULT 400
) RETURNS TABLE (
    "at" timestamptz,
    "resolution" text,
    %(series_columns)s
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    chosen CONSTANT text := public.guestd_resolution(since, until, points);
BEGIN
    IF chosen = 'raw' THEN
        RETURN QUERY SELECT
            sample."timestamp"::timestamptz,
            chosen,
            %(series_of_samples)s
        FROM public."SystemMetrics" AS sample
        WHERE sample."machineId" = machine AND sample."timestamp" >= since AND sample."timestamp" < until
        ORDER BY sample."timestamp";
    ELSE
        RETURN QUERY EXECUTE format(
            'SELECT rolled."bucket"::timestamptz, $1,
                %(series_of_rollups)s
            FROM public.%I AS rolled
            WHERE rolled."machineId" = $2 AND rolled."bucket" >= $3 AND rolled."bucket" < $4
            ORDER BY rolled."bucket"',
            CASE chosen WHEN 'minute' THEN 'SystemMetrics_1m' ELSE 'SystemMetrics_1h' END
        ) USING chosen, machine, since, until;
    END IF;
END;
$$;

COMMENT ON FUNCTION public.guestd_machine_series(uuid, timestamptz, timestamptz, integer) IS
'The series of a machine in [since, until), raw, by the minute or by the hour: the finest resolution with at most about that many points.';

CREATE OR REPLACE FUNCTION public.guestd_top_processes(
    asked uuid [], since timestamptz, until timestamptz, most integer DEFAULT 10
) RETURNS TABLE (
    "name" text,
    "machines" bigint,
    "cpuUsagePercent" double precision,
    "memoryUsageKB" double precision
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- Long windows are answered from rolled-up hours: whole hours, of which the last may be missing. For all machines a
    -- window of samples is limited to minutes: a fleet has too many processes.
    IF until - since > (CASE WHEN asked IS NULL THEN INTERVAL '10 minutes' ELSE INTERVAL '2 hours' END) THEN
        RETURN QUERY
        WITH hours AS MATERIALIZED (
            SELECT fleet."bucket", fleet."name", fleet."machines", fleet."cpuUsagePercent", fleet."memoryUsageKB"
            FROM public."ProcessFleetHour" AS fleet
            WHERE asked IS NULL AND fleet."bucket" >= date_trunc('hour', since, 'UTC') AND fleet."bucket" < until
            UNION ALL
            SELECT
                hour."bucket",
                hour."name",
                count(*)::integer,
                sum(public.guestd_bounded(hour."cpuUsagePercentSum") / greatest(messages."samples", 1)),
                sum(hour."memoryUsageKBSum" / greatest(messages."samples", 1)::double precision)
            FROM public."ProcessUsageHour" AS hour
            INNER JOIN public."SystemMetricsHour" AS messages
                ON messages."machineId" = hour."machineId" AND messages."bucket" = hour."bucket"
            WHERE asked IS NOT NULL AND hour."machineId" = ANY(asked) AND messages."machineId" = ANY(asked)
                AND hour."bucket" >= date_trunc('hour', since, 'UTC') AND hour."bucket" < until
                AND messages."bucket" >= date_trunc('hour', since, 'UTC') AND messages."bucket" < until
            GROUP BY hour."bucket", hour."name"
        )
        SELECT
            hours."name",
            max(hours."machines")::bigint,
            sum(public.guestd_bounded(hours."cpuUsagePercent")) / (SELECT count(DISTINCT hours."bucket") FROM hours),
            sum(public.guestd_bounded(hours."memoryUsageKB")) / (SELECT count(DISTINCT hours."bucket") FROM hours)
        FROM hours
        GROUP BY hours."name"
        ORDER BY 3 DESC, 1
        LIMIT most;
    ELSE
        RETURN QUERY
        SELECT used."name", count(*), sum(used.cpu), sum(used.memory)
        FROM public."Machine" AS machine
        CROSS JOIN LATERAL (
            SELECT count(*) AS "samples"
            FROM public."SystemMetrics" AS sample
            WHERE sample."machineId" = machine."id" AND sample."timestamp" >= since AND sample."timestamp" < until
        ) AS messages
        CROSS JOIN LATERAL (
            SELECT
                process."name",
                sum(public.guestd_bounded(process."cpuUsagePercent")) / messages."samples" AS cpu,
                sum(process."memoryUsageKB") / messages."samples"::double precision AS memory
            FROM public."ProcessSnapshot" AS process
            WHERE process."machineId" = machine."id"
                AND process."timestamp" >= since AND process."timestamp" < until
            GROUP BY process."name"
        ) AS used
        WHERE (asked IS NULL OR machine."id" = ANY(asked)) AND messages."samples" > 0
        GROUP BY used."name"
        ORDER BY 3 DESC, 1
        LIMIT most;
    END IF;
END;
$$;

COMMENT ON FUNCTION public.guestd_top_processes(uuid [], timestamptz, timestamptz, integer) IS
'The process names that used most CPU in a window, on these machines or, for NULL, on all: the sum of the means of the machines, percent of one core and KiB. Windows over 2 hours (10 minutes for all machines) return the mean of whole hours; machines is then the maximum of any hour.';

CREATE OR REPLACE FUNCTION public.guestd_process_series(
    machine uuid, since timestamptz, until timestamptz, most integer DEFAULT 10
) RETURNS TABLE ("at" timestamptz, "name" text, "cpuUsagePercent" double precision)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- Samples up to six hours, the usual range of a dashboard; for longer windows hours, a hundred times fewer rows.
    IF until - since <= INTERVAL '6 hours' THEN
        RETURN QUERY
        WITH used AS MATERIALIZED (
            SELECT process."timestamp" AS at, process."name", sum(public.guestd_bounded(process."cpuUsagePercent")) AS cpu
            FROM public."ProcessSnapshot" AS process
            WHERE process."machineId" = machine AND process."timestamp" >= since AND process."timestamp" < until
            GROUP BY process."timestamp", process."name"
        )
        SELECT used.at::timestamptz, used."name", used.cpu
        FROM used
        WHERE used."name" IN (SELECT top."name" FROM used AS top GROUP BY 1 ORDER BY sum(top.cpu) DESC, 1 LIMIT most)
        ORDER BY 1, 2;
    ELSE
        RETURN QUERY
        WITH used AS MATERIALIZED (
            SELECT hour."bucket" AS at, hour."name", 
                public.guestd_bounded(hour."cpuUsagePercentSum") / greatest(messages."samples", 1) AS cpu
            FROM public."ProcessUsage_1h" AS hour
            INNER JOIN public."SystemMetrics_1h" AS messages ON messages."bucket" = hour."bucket"
            WHERE hour."machineId" = machine AND messages."machineId" = machine
                AND hour."bucket" >= date_trunc('hour', since, 'UTC') AND hour."bucket" < until
                AND messages."bucket" >= date_trunc('hour', since, 'UTC') AND messages."bucket" < until
        )
        SELECT used.at::timestamptz, used."name", used.cpu
        FROM used
        WHERE used."name" IN (SELECT top."name" FROM used AS top GROUP BY 1 ORDER BY sum(top.cpu) DESC, 1 LIMIT most)
        ORDER BY 1, 2;
    END IF;
END;
$$;

COMMENT ON FUNCTION public.guestd_process_series(uuid, timestamptz, timestamptz, integer) IS
'The process names of a machine that used most CPU in a window, percent of one core: by sample up to 6 hours, by the mean of each hour for longer windows.';

CREATE OR REPLACE FUNCTION public.guestd_fleet_series(since timestamptz, until timestamptz, points integer DEFAULT 400)
RETURNS TABLE (
    "at" timestamptz,
    "machines" bigint,
    "cpuUsagePercentAvg" double precision,
    "cpuUsagePercentMax" double precision,
    "usedMemoryKBAvg" double precision
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- Minutes up to four times as many points; for longer ranges hours, each the mean of its machines' minutes.
    IF until - since <= points * INTERVAL '4 minutes' THEN
        RETURN QUERY
        SELECT
            fleet."bucket"::timestamptz, fleet."machines"::bigint, fleet."cpuUsagePercentAvg", fleet."cpuUsagePercentMax",
            fleet."usedMemoryKBAvg"
        FROM public."SystemFleet_1m" AS fleet
        WHERE fleet."bucket" >= since AND fleet."bucket" < until
        ORDER BY fleet."bucket";
    ELSE
        RETURN QUERY
        SELECT
            date_trunc('hour', fleet."bucket", 'UTC'), max(fleet."machines")::bigint,
            sum(public.guestd_bounded(fleet."cpuUsagePercentAvg") * greatest(fleet."machines", 1))
            / sum(greatest(fleet."machines", 1)),
            max(fleet."cpuUsagePercentMax"),
            sum(public.guestd_bounded(fleet."usedMemoryKBAvg") * greatest(fleet."machines", 1))
            / sum(greatest(fleet."machines", 1))
        FROM public."SystemFleet_1m" AS fleet
        WHERE fleet."bucket" >= date_trunc('hour', since, 'UTC') AND fleet."bucket" < until
        GROUP BY 1
        ORDER BY 1;
    END IF;
END;
$$;

COMMENT ON FUNCTION public.guestd_fleet_series(timestamptz, timestamptz, integer) IS
'The series of all machines together in [since, until): by the minute up to four times as many points, by the hour for longer ranges.';
