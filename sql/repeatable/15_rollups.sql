-- Roll-ups and retention. docs/decisions/0037 and 0038 say why they are kept this way.

CREATE OR REPLACE FUNCTION public.guestd_sum_of(stats jsonb, key text) RETURNS double precision
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT sum(least((element -> key)::double precision, 1e18))
    FROM jsonb_array_elements(CASE jsonb_typeof(stats) WHEN 'array' THEN stats ELSE '[]' END) AS element
    WHERE jsonb_typeof(element -> key) = 'number'
$$;

COMMENT ON FUNCTION public.guestd_sum_of(jsonb, text) IS
'Sum of a number over the objects of an array, such as bytesSent over all interfaces; NULL where no object has it.';

CREATE OR REPLACE FUNCTION public.guestd_number_of(stats jsonb, key text) RETURNS double precision
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE jsonb_typeof(stats -> key) WHEN 'number' THEN least((stats -> key)::double precision, 1e18) END
$$;

COMMENT ON FUNCTION public.guestd_number_of(jsonb, text) IS 'A number of an object; NULL where it has none.';

CREATE OR REPLACE FUNCTION public.guestd_note_pending() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Every message has its row in SystemMetrics, and its other rows share the timestamp: one log serves all series.
    INSERT INTO public."RollupPending" ("unit", "bucket", "machineId")
    SELECT DISTINCT 'minute', date_trunc('minute', added."timestamp", 'UTC'), added."machineId" FROM added
    -- Nobody's row only makes a chunk.
    WHERE added."machineId" <> '00000000-0000-0000-0000-000000000000';
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_note_pending() IS 'Notes for the roll-ups which minutes have new samples.';

CREATE OR REPLACE FUNCTION public.guestd_note_pending_of(machine uuid, at timestamptz) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public."RollupPending" ("unit", "bucket", "machineId")
    VALUES ('minute', date_trunc('minute', at, 'UTC'), machine);
END;
$$;

COMMENT ON FUNCTION public.guestd_note_pending_of(uuid, timestamptz) IS
'Notes for the roll-ups that rows were added to a message whose row in SystemMetrics was there before.';

CREATE OR REPLACE FUNCTION public.guestd_take_pending(
    wanted_unit text, closed timestamptz, most integer, OUT machines uuid [], OUT buckets timestamptz []
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_machines uuid[];
    found_buckets timestamptz[];
    found_ids bigint[];
    known uuid[];
BEGIN
    SELECT array_agg(due."machineId"), array_agg(due."bucket"), array_agg(due."id")
    INTO found_machines, found_buckets, found_ids
    FROM (
        SELECT waits."machineId", waits."bucket", waits."id"
        FROM public."RollupPending" AS waits
        WHERE waits."unit" = wanted_unit AND waits."bucket" < closed
        ORDER BY waits."bucket", waits."machineId", waits."id"
        LIMIT most
    ) AS due;
    -- As a foreign key would, and before anything else is locked: whoever deletes a machine goes the same way.
    SELECT array_agg(machine."id") INTO known
    FROM (
        SELECT there."id" FROM public."Machine" AS there
        WHERE there."id" = ANY(found_machines)
        ORDER BY there."id"
        FOR KEY SHARE
    ) AS machine;
    DELETE FROM public."RollupPending" AS waits
    USING unnest(found_machines, found_buckets, found_ids) AS due (machine, bucket, id)
    WHERE waits."unit" = wanted_unit AND waits."bucket" = due.bucket AND waits."machineId" = due.machine
        AND waits."id" = due.id;
    SELECT array_agg(pair.machine), array_agg(pair.bucket) INTO machines, buckets
    FROM (
        SELECT DISTINCT due.bucket, due.machine
        FROM unnest(found_machines, found_buckets) AS due (machine, bucket)
        WHERE due.machine = ANY(known)
        ORDER BY due.bucket, due.machine
    ) AS pair;
END;
$$;

COMMENT ON FUNCTION public.guestd_take_pending(text, timestamptz, integer) IS
'Takes the oldest of what waits and gives it as pairs of machine and bucket. A row that is seen was committed, and so were its samples.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_minutes(most integer) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Most samples of a minute are stored half a minute after it; later ones are late, which is as good.
    closed CONSTANT timestamptz := date_trunc('minute', now() - INTERVAL '30 seconds', 'UTC');
    due record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('guestd roll-up', 0)) THEN
        RETURN 0;
    END IF;
    SELECT * INTO due FROM public.guestd_take_pending('minute', closed, most);
    INSERT INTO public."SystemMetricsMinute" AS rolled
    SELECT pair.machine, pair.bucket, minute.*
    FROM unnest(due.machines, due.buckets) AS pair (machine, bucket)
    CROSS JOIN LATERAL public.guestd_system_metrics_between(
        pair.machine, pair.bucket, pair.bucket + INTERVAL '1 minute'
    ) AS minute
    WHERE minute."samples" > 0
    ON CONFLICT ("machineId", "bucket") DO UPDATE SET
        "samples" = excluded."samples",
        "cpuUsagePercentAvg" = excluded."cpuUsagePercentAvg",
        "cpuUsagePercentMax" = excluded."cpuUsagePercentMax",
        "usedMemoryKBAvg" = excluded."usedMemoryKBAvg",
        "usedMemoryKBMax" = excluded."usedMemoryKBMax",
        "totalMemoryKBMax" = excluded."totalMemoryKBMax",
        "availableMemoryKBMin" = excluded."availableMemoryKBMin",
        "swapUsedKBMax" = excluded."swapUsedKBMax",
        "diskReadBytesPerSecAvg" = excluded."diskReadBytesPerSecAvg",
        "diskWriteBytesPerSecAvg" = excluded."diskWriteBytesPerSecAvg",
        "networkReceivedBytesPerSecAvg" = excluded."networkReceivedBytesPerSecAvg",
        "networkSentBytesPerSecAvg" = excluded."networkSentBytesPerSecAvg",
        "load1minAvg" = excluded."load1minAvg";
    INSERT INTO public."RollupPending" ("unit", "bucket", "machineId")
    SELECT DISTINCT 'hour', date_trunc('hour', pair.bucket, 'UTC'), pair.machine
    FROM unnest(due.machines, due.buckets) AS pair (machine, bucket)
    WHERE NOT EXISTS (
        SELECT FROM public."RollupPending" AS waits
        WHERE waits."unit" = 'hour' AND waits."bucket" = date_trunc('hour', pair.bucket, 'UTC')
            AND waits."machineId" = pair.machine
    );
    PERFORM public.guestd_roll_up_fleet_minutes(ARRAY(SELECT DISTINCT unnest(due.buckets)));
    PERFORM public.guestd_advance_rollup('SystemMetricsMinute', closed);
    PERFORM public.guestd_advance_rollup('SystemFleetMinute', closed);
    RETURN coalesce(cardinality(due.machines), 0);
END;
$$;

COMMENT ON FUNCTION public.guestd_roll_up_minutes(integer) IS
'Computes up to so many waiting minutes of machines that are closed anew from their samples; returns how many, 0 when nothing is left or another session is at it.';

CREATE OR REPLACE FUNCTION public.guestd_system_metrics_between(
    machine uuid,
    since timestamptz,
    until timestamptz,
    OUT "samples" integer,
    OUT "cpuUsagePercentAvg" double precision,
    OUT "cpuUsagePercentMax" double precision,
    OUT "usedMemoryKBAvg" double precision,
    OUT "usedMemoryKBMax" bigint,
    OUT "totalMemoryKBMax" bigint,
    OUT "availableMemoryKBMin" bigint,
    OUT "swapUsedKBMax" bigint,
    OUT "diskReadBytesPerSecAvg" double precision,
    OUT "diskWriteBytesPerSecAvg" double precision,
    OUT "networkReceivedBytesPerSecAvg" double precision,
    OUT "networkSentBytesPerSecAvg" double precision,
    OUT "load1minAvg" double precision
)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        count(*)::integer,
        avg(sample."cpuUsagePercent"),
        max(sample."cpuUsagePercent"),
        avg(sample."usedMemoryKB"::double precision),
        max(sample."usedMemoryKB"),
        max(sample."totalMemoryKB"),
        min(sample."availableMemoryKB"),
        max(sample."swapUsedKB"),
        avg(public.guestd_number_of(sample."diskIOStats", 'readBytesPerSec')),
        avg(public.guestd_number_of(sample."diskIOStats", 'writeBytesPerSec')),
        avg(public.guestd_sum_of(sample."networkStats", 'bytesReceived')),
        avg(public.guestd_sum_of(sample."networkStats", 'bytesSent')),
        avg(public.guestd_number_of(sample."loadAverage", 'load1min'))
    FROM public."SystemMetrics" AS sample
    WHERE sample."machineId" = machine AND sample."timestamp" >= since AND sample."timestamp" < until
$$;

COMMENT ON FUNCTION public.guestd_system_metrics_between(uuid, timestamptz, timestamptz) IS
'What SystemMetricsMinute holds of a machine, computed from its samples from one time to before another.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_hours(most integer) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    closed CONSTANT timestamptz := date_trunc('hour', now() - INTERVAL '90 seconds', 'UTC');
    due record;
    relation text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('guestd roll-up', 0)) THEN
        RETURN 0;
    END IF;
    SELECT * INTO due FROM public.guestd_take_pending('hour', closed, most);
    PERFORM public.guestd_roll_up_system_hours(due.machines, due.buckets);
    PERFORM public.guestd_roll_up_process_hours(due.machines, due.buckets);
    PERFORM public.guestd_roll_up_days(due.machines, due.buckets);
    PERFORM public.guestd_note_fleet(due.buckets);
    FOREACH relation IN ARRAY ARRAY['SystemMetricsHour', 'ProcessUsageHour', 'ApplicationUsageDay', 'ListeningPortDay'] LOOP
        PERFORM public.guestd_advance_rollup(relation, closed);
    END LOOP;
    RETURN coalesce(cardinality(due.machines), 0);
END;
$$;

COMMENT ON FUNCTION public.guestd_roll_up_hours(integer) IS
'Computes up to so many waiting hours of machines that are closed anew, and adds them to their days; returns how many, 0 when nothing is left or another session is at it.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_system_hours(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO public."SystemMetricsHour" AS rolled
    SELECT
        pair.machine,
        pair.bucket,
        sum(minute."samples"),
        sum(minute."cpuUsagePercentAvg" * minute."samples") / sum(minute."samples"),
        max(minute."cpuUsagePercentMax"),
        sum(minute."usedMemoryKBAvg" * minute."samples") / sum(minute."samples"),
        max(minute."usedMemoryKBMax"),
        max(minute."totalMemoryKBMax"),
        min(minute."availableMemoryKBMin"),
        max(minute."swapUsedKBMax"),
        sum(minute."diskReadBytesPerSecAvg" * minute."samples")
        / sum(minute."samples") FILTER (WHERE minute."diskReadBytesPerSecAvg" IS NOT NULL),
        sum(minute."diskWriteBytesPerSecAvg" * minute."samples")
        / sum(minute."samples") FILTER (WHERE minute."diskWriteBytesPerSecAvg" IS NOT NULL),
        sum(minute."networkReceivedBytesPerSecAvg" * minute."samples")
        / sum(minute."samples") FILTER (WHERE minute."networkReceivedBytesPerSecAvg" IS NOT NULL),
        sum(minute."networkSentBytesPerSecAvg" * minute."samples")
        / sum(minute."samples") FILTER (WHERE minute."networkSentBytesPerSecAvg" IS NOT NULL),
        sum(minute."load1minAvg" * minute."samples")
        / sum(minute."samples") FILTER (WHERE minute."load1minAvg" IS NOT NULL)
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    INNER JOIN public."SystemMetricsMinute" AS minute
        ON minute."machineId" = pair.machine
        AND minute."bucket" >= pair.bucket AND minute."bucket" < pair.bucket + INTERVAL '1 hour'
    GROUP BY pair.machine, pair.bucket
    ON CONFLICT ("machineId", "bucket") DO UPDATE SET
        "samples" = excluded."samples",
        "cpuUsagePercentAvg" = excluded."cpuUsagePercentAvg",
        "cpuUsagePercentMax" = excluded."cpuUsagePercentMax",
        "usedMemoryKBAvg" = excluded."usedMemoryKBAvg",
        "usedMemoryKBMax" = excluded."usedMemoryKBMax",
        "totalMemoryKBMax" = excluded."totalMemoryKBMax",
        "availableMemoryKBMin" = excluded."availableMemoryKBMin",
        "swapUsedKBMax" = excluded."swapUsedKBMax",
        "diskReadBytesPerSecAvg" = excluded."diskReadBytesPerSecAvg",
        "diskWriteBytesPerSecAvg" = excluded."diskWriteBytesPerSecAvg",
        "networkReceivedBytesPerSecAvg" = excluded."networkReceivedBytesPerSecAvg",
        "networkSentBytesPerSecAvg" = excluded."networkSentBytesPerSecAvg",
        "load1minAvg" = excluded."load1minAvg"
$$;

COMMENT ON FUNCTION public.guestd_roll_up_system_hours(uuid [], timestamptz []) IS
'Computes hours of SystemMetricsHour anew from their minutes, weighted by samples.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_process_hours(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO public."ProcessUsageHour" AS rolled
    SELECT pair.machine, pair.bucket, hour.*
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    CROSS JOIN LATERAL (
        SELECT
            process."name",
            count(*),
            sum(least(process."cpuUsagePercent", 1e18)),
            max(process."cpuUsagePercent"),
            least(sum(process."memoryUsageKB"), 9223372036854775807)::bigint,
            max(process."memoryUsageKB")
        FROM public."ProcessSnapshot" AS process
        WHERE process."machineId" = pair.machine
            AND process."timestamp" >= pair.bucket AND process."timestamp" < pair.bucket + INTERVAL '1 hour'
        GROUP BY process."name"
    ) AS hour
    ON CONFLICT ("machineId", "bucket", "name") DO UPDATE SET
        "samples" = excluded."samples",
        "cpuUsagePercentSum" = excluded."cpuUsagePercentSum",
        "cpuUsagePercentMax" = excluded."cpuUsagePercentMax",
        "memoryUsageKBSum" = excluded."memoryUsageKBSum",
        "memoryUsageKBMax" = excluded."memoryUsageKBMax"
$$;

COMMENT ON FUNCTION public.guestd_roll_up_process_hours(uuid [], timestamptz []) IS
'Computes hours of ProcessUsageHour anew from their samples.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_days(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    -- A day is the least and the greatest of its hours, so that an hour that is added again changes nothing.
    INSERT INTO public."ApplicationUsageDay" AS rolled
    SELECT
        pair.machine,
        date_trunc('day', pair.bucket, 'UTC'),
        used."executablePath",
        min(used."totalUsageMinutes"),
        max(used."totalUsageMinutes"),
        min(used."accessCount"),
        max(used."accessCount")
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    CROSS JOIN LATERAL (
        SELECT usage."executablePath", usage."totalUsageMinutes", usage."accessCount"
        FROM public."ApplicationUsageHistory" AS usage
        WHERE usage."machineId" = pair.machine
            AND usage."timestamp" >= pair.bucket AND usage."timestamp" < pair.bucket + INTERVAL '1 hour'
    ) AS used
    GROUP BY pair.machine, date_trunc('day', pair.bucket, 'UTC'), used."executablePath"
    ON CONFLICT ("machineId", "bucket", "executablePath") DO UPDATE SET
        "totalUsageMinutesMin" = least(rolled."totalUsageMinutesMin", excluded."totalUsageMinutesMin"),
        "totalUsageMinutesMax" = greatest(rolled."totalUsageMinutesMax", excluded."totalUsageMinutesMax"),
        "accessCountMin" = least(rolled."accessCountMin", excluded."accessCountMin"),
        "accessCountMax" = greatest(rolled."accessCountMax", excluded."accessCountMax");
    INSERT INTO public."ListeningPortDay" AS rolled
    SELECT
        pair.machine,
        date_trunc('day', pair.bucket, 'UTC'),
        listening."port",
        listening."protocol",
        coalesce(listening."processName", ''),
        max(listening."executablePath" COLLATE "C"),
        min(listening."timestamp"),
        max(listening."timestamp"),
        max(listening."connectionCount")
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    CROSS JOIN LATERAL (
        SELECT
            usage."port", usage."protocol", usage."processName", usage."executablePath", usage."timestamp",
            usage."connectionCount"
        FROM public."PortUsage" AS usage
        WHERE usage."machineId" = pair.machine AND usage."isListening"
            AND usage."timestamp" >= pair.bucket AND usage."timestamp" < pair.bucket + INTERVAL '1 hour'
    ) AS listening
    GROUP BY
        pair.machine,
        date_trunc('day', pair.bucket, 'UTC'),
        listening."port",
        listening."protocol",
        coalesce(listening."processName", '')
    ON CONFLICT ("machineId", "bucket", "port", "protocol", "processName") DO UPDATE SET
        "executablePath" = greatest(rolled."executablePath" COLLATE "C", excluded."executablePath" COLLATE "C"),
        "firstSeen" = least(rolled."firstSeen", excluded."firstSeen"),
        "lastSeen" = greatest(rolled."lastSeen", excluded."lastSeen"),
        "connectionCountMax" = greatest(rolled."connectionCountMax", excluded."connectionCountMax")
$$;

COMMENT ON FUNCTION public.guestd_roll_up_days(uuid [], timestamptz []) IS
'Adds hours to the days of ApplicationUsageDay and ListeningPortDay.';

CREATE OR REPLACE FUNCTION public.guestd_note_fleet(hours timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO public."RollupPending" ("unit", "bucket", "machineId")
    SELECT DISTINCT 'fleet', hour, '00000000-0000-0000-0000-000000000000'::uuid
    FROM unnest(hours) AS hour
    WHERE NOT EXISTS (
        SELECT FROM public."RollupPending" AS waits WHERE waits."unit" = 'fleet' AND waits."bucket" = hour
    )
$$;

COMMENT ON FUNCTION public.guestd_note_fleet(timestamptz []) IS
'Notes hours in which what the fleet did is to be added up anew.';

CREATE OR REPLACE FUNCTION public.guestd_note_fleet_of(machines uuid []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT public.guestd_note_fleet(ARRAY(
        SELECT date_trunc('hour', rolled."bucket", 'UTC')
        FROM public."SystemMetricsMinute" AS rolled
        WHERE rolled."machineId" = ANY(machines)
        UNION
        SELECT rolled."bucket"
        FROM public."ProcessUsageHour" AS rolled
        WHERE rolled."machineId" = ANY(machines)
    ))
$$;

COMMENT ON FUNCTION public.guestd_note_fleet_of(uuid []) IS
'Notes the hours of the fleet that machines have a part in: before their roll-ups are deleted.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_fleet_minutes(minutes timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM public."SystemFleetMinute" WHERE "bucket" = ANY(minutes);
    INSERT INTO public."SystemFleetMinute"
    SELECT minute, fleet.*
    FROM unnest(minutes) AS minute
    -- Minute by minute through the index: the planner takes some hundred minutes for most of a chunk.
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS machines,
            avg(rolled."cpuUsagePercentAvg"),
            max(rolled."cpuUsagePercentMax"),
            avg(rolled."usedMemoryKBAvg")
        FROM public."SystemMetricsMinute" AS rolled
        WHERE rolled."bucket" = minute
    ) AS fleet
    WHERE fleet.machines > 0
$$;

COMMENT ON FUNCTION public.guestd_roll_up_fleet_minutes(timestamptz []) IS
'Computes minutes of SystemFleetMinute anew from those of the machines; each is named once.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_fleet(most integer) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    closed CONSTANT timestamptz := date_trunc('hour', now() - INTERVAL '90 seconds', 'UTC');
    hours timestamptz[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('guestd roll-up', 0)) THEN
        RETURN 0;
    END IF;
    -- The newest first: those are looked at, and a machine that was deleted has years of them.
    hours := ARRAY(
        SELECT DISTINCT waits."bucket" FROM public."RollupPending" AS waits
        WHERE waits."unit" = 'fleet'
        ORDER BY waits."bucket" DESC
        LIMIT most
    );
    DELETE FROM public."RollupPending" WHERE "unit" = 'fleet' AND "bucket" = ANY(hours);
    PERFORM public.guestd_roll_up_fleet_minutes(ARRAY(
        SELECT hour + place * INTERVAL '1 minute' FROM unnest(hours) AS hour, generate_series(0, 59) AS place
    ));
    DELETE FROM public."ProcessFleetHour" WHERE "bucket" = ANY(hours);
    INSERT INTO public."ProcessFleetHour"
    SELECT
        used."bucket",
        used."name",
        count(*),
        sum(used."cpuUsagePercentSum" / messages."samples"),
        sum(used."memoryUsageKBSum" / messages."samples"::double precision)
    FROM public."ProcessUsageHour" AS used
    INNER JOIN public."SystemMetricsHour" AS messages
        ON messages."machineId" = used."machineId" AND messages."bucket" = used."bucket"
    WHERE used."bucket" = ANY(hours) AND messages."bucket" = ANY(hours)
    GROUP BY used."bucket", used."name";
    PERFORM public.guestd_advance_rollup('ProcessFleetHour', closed);
    RETURN cardinality(hours);
END;
$$;

COMMENT ON FUNCTION public.guestd_roll_up_fleet(integer) IS
'Adds up to so many waiting hours of the fleet up anew from those of the machines; returns how many, 0 when nothing is left or another session is at it.';

CREATE OR REPLACE FUNCTION public.guestd_advance_rollup(rolled text, closed timestamptz) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public."RollupState" AS state
    SET "coveredUntil" = moved."until"
    FROM (
        SELECT least(
            closed,
            (SELECT min(waits."bucket") FROM public."RollupPending" AS waits WHERE waits."unit" = 'minute'),
            CASE WHEN rolled NOT IN ('SystemMetricsMinute', 'SystemFleetMinute') THEN
                (SELECT min(waits."bucket") FROM public."RollupPending" AS waits WHERE waits."unit" = 'hour')
            END,
            CASE WHEN rolled = 'ProcessFleetHour' THEN
                (SELECT min(waits."bucket") FROM public."RollupPending" AS waits WHERE waits."unit" = 'fleet')
            END
        ) AS "until"
    ) AS moved
    -- It never goes back: what is late shows in the view when it has been rolled up, within a minute or an hour.
    WHERE state."relation" = rolled AND state."coveredUntil" < moved."until"
$$;

COMMENT ON FUNCTION public.guestd_advance_rollup(text, timestamptz) IS
'Moves a roll-up''s coveredUntil up to a time, or to the oldest bucket that still waits.';

CREATE OR REPLACE FUNCTION public.guestd_covered_until(raw text) RETURNS timestamptz
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT least(
        min(state."coveredUntil"),
        (SELECT min(waits."bucket") FROM public."RollupPending" AS waits WHERE waits."unit" = 'minute'),
        (SELECT min(waits."bucket") FROM public."RollupPending" AS waits WHERE waits."unit" = 'hour'),
        CASE WHEN raw IN ('SystemMetricsMinute', 'SystemMetricsHour', 'ProcessUsageHour') THEN
            (SELECT min(waits."bucket") FROM public."RollupPending" AS waits WHERE waits."unit" = 'fleet')
        END
    )
    FROM (
        VALUES
        ('SystemMetrics', 'SystemMetricsMinute'),
        ('SystemMetricsMinute', 'SystemMetricsHour'),
        ('SystemMetricsMinute', 'SystemFleetMinute'),
        ('SystemMetricsHour', 'ProcessFleetHour'),
        ('ProcessUsageHour', 'ProcessFleetHour'),
        ('ProcessSnapshot', 'ProcessUsageHour'),
        ('ApplicationUsageHistory', 'ApplicationUsageDay'),
        ('PortUsage', 'ListeningPortDay')
    ) AS feeds (series, rolled)
    INNER JOIN public."RollupState" AS state ON state."relation" = feeds.rolled
    WHERE feeds.series = raw
    HAVING count(*) > 0
$$;

COMMENT ON FUNCTION public.guestd_covered_until(text) IS
'Up to when the roll-ups hold all that a series holds; NULL for a relation that feeds none.';

CREATE OR REPLACE FUNCTION public.guestd_enforce_retention(pruned text) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cutoff timestamptz;
    dropped bigint;
BEGIN
    SELECT due."cutoff" INTO cutoff FROM public."RetentionDue" AS due WHERE due."relation" = pruned;
    IF cutoff IS NULL THEN
        RAISE EXCEPTION '% has no row in RetentionSetting.', quote_nullable(pruned)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('guestd retention ' || pruned, 0)) THEN
        RETURN 0;
    END IF;
    CASE pruned
    WHEN 'ApplicationUsage' THEN
        DELETE FROM public."ApplicationUsage" WHERE NOT "isActive" AND "lastSeen" < cutoff;
        GET DIAGNOSTICS dropped = ROW_COUNT;
    WHEN 'QuarantinedFrame' THEN
        DELETE FROM public."QuarantinedFrame" WHERE "createdAt" < cutoff;
        GET DIAGNOSTICS dropped = ROW_COUNT;
    ELSE
        SELECT count(*) INTO dropped
        FROM public.drop_chunks(format('public.%I', pruned)::regclass, older_than => cutoff);
    END CASE;
    RETURN dropped;
END;
$$;

COMMENT ON FUNCTION public.guestd_enforce_retention(text) IS
'Takes from a relation what RetentionDue names; returns the number of chunks, or of rows of a plain table; 0 while another session is at it.';
