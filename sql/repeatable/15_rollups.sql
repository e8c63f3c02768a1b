-- Roll-ups and retention. Design: docs/decisions/0037 and 0038.
-- %(rollup_...)s are lists of columns: gueststore.column_lists.

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
'Sum of a number over the objects of an array, such as bytesSent over all interfaces; NULL when no object has it.';

CREATE OR REPLACE FUNCTION public.guestd_number_of(stats jsonb, key text) RETURNS double precision
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE jsonb_typeof(stats -> key) WHEN 'number' THEN least((stats -> key)::double precision, 1e18) END
$$;

COMMENT ON FUNCTION public.guestd_number_of(jsonb, text) IS 'A number of an object; NULL when the object has none.';

CREATE OR REPLACE FUNCTION public.guestd_note_pending() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Every message has a row in SystemMetrics, and its other rows share the timestamp: one log serves all series.
    INSERT INTO public."RollupPending" ("unit", "bucket", "machineId")
    SELECT DISTINCT 'minute', date_trunc('minute', added."timestamp", 'UTC'), added."machineId" FROM added
    -- The row of the nil machine only creates a chunk.
    WHERE added."machineId" <> '00000000-0000-0000-0000-000000000000';
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_note_pending() IS 'Adds the minutes of new samples to RollupPending.';

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
'Adds a minute to RollupPending when rows were added to a message whose row in SystemMetrics existed before.';

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
        -- The newest first: people read those, and late samples of one machine do not hold up those of the others.
        ORDER BY waits."bucket" DESC, waits."machineId" DESC, waits."id" DESC
        LIMIT most
    ) AS due;
    -- Lock the machines as a foreign key would, and first: the deletion of a machine takes its locks in the same order.
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
'Removes the newest closed buckets from RollupPending and returns them as pairs of machine and bucket. A visible row was committed together with its samples.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_minutes(most integer) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Most samples of a minute are stored within half a minute; later ones make the minute pending again.
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
        %(rollup_updates)s;
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
'Recomputes up to that many closed pending minutes of machines from their samples; returns their number, 0 when none is pending or another session rolls up.';

CREATE OR REPLACE FUNCTION public.guestd_system_metrics_between(
    machine uuid,
    since timestamptz,
    until timestamptz,
    %(rollup_parameters)s
)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        %(rollup_of_samples)s
    FROM public."SystemMetrics" AS sample
    WHERE sample."machineId" = machine AND sample."timestamp" >= since AND sample."timestamp" < until
$$;

COMMENT ON FUNCTION public.guestd_system_metrics_between(uuid, timestamptz, timestamptz) IS
'The columns of SystemMetricsMinute for a machine, computed from its samples in [since, until).';

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
'Recomputes up to that many closed pending hours of machines and merges them into their days; returns their number, 0 when none is pending or another session rolls up.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_system_hours(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO public."SystemMetricsHour" AS rolled
    SELECT
        pair.machine,
        pair.bucket,
        %(rollup_of_minutes)s
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    INNER JOIN public."SystemMetricsMinute" AS minute
        ON minute."machineId" = pair.machine
        AND minute."bucket" >= pair.bucket AND minute."bucket" < pair.bucket + INTERVAL '1 hour'
    GROUP BY pair.machine, pair.bucket
    ON CONFLICT ("machineId", "bucket") DO UPDATE SET
        %(rollup_updates)s
$$;

COMMENT ON FUNCTION public.guestd_roll_up_system_hours(uuid [], timestamptz []) IS
'Recomputes hours of SystemMetricsHour from their minutes, weighted by samples.';

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
'Recomputes hours of ProcessUsageHour from their samples.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_days(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    -- A day is the minimum and maximum of its hours: merging an hour twice changes nothing.
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
'Merges hours into the days of ApplicationUsageDay and ListeningPortDay.';

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
'Adds hours of the fleet to RollupPending.';

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
'Adds the hours of the fleet that include machines to RollupPending; call it before their roll-ups are deleted.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_fleet_minutes(minutes timestamptz []) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM public."SystemFleetMinute" WHERE "bucket" = ANY(minutes);
    INSERT INTO public."SystemFleetMinute"
    SELECT minute, fleet.*
    FROM unnest(minutes) AS minute
    -- Minute by minute through the index: the planner would read a whole chunk for some hundred minutes.
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
'Recomputes minutes of SystemFleetMinute from those of the machines; each minute must be given once.';

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
    -- The newest first: people read those, and a deleted machine leaves years of them.
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
'Recomputes up to that many pending hours of the fleet from those of the machines; returns their number, 0 when none is pending or another session rolls up.';

CREATE OR REPLACE FUNCTION public.guestd_advance_rollup(rolled text, closed timestamptz) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public."RollupState" AS state
    SET "coveredUntil" = moved."until"
    FROM public."RollupState" AS before
    CROSS JOIN LATERAL (
        -- What is pending before coveredUntil is late: it appears in the view after its roll-up, within a minute or an
        -- hour, and does not hold up the others.
        SELECT least(
            closed,
            -- An hour is covered when all its minutes are.
            date_trunc(
                CASE WHEN rolled IN ('SystemMetricsMinute', 'SystemFleetMinute') THEN 'minute' ELSE 'hour' END,
                (
                    SELECT min(waits."bucket") FROM public."RollupPending" AS waits
                    WHERE waits."unit" = 'minute' AND waits."bucket" >= before."coveredUntil"
                ),
                'UTC'
            ),
            CASE WHEN rolled NOT IN ('SystemMetricsMinute', 'SystemFleetMinute') THEN (
                SELECT min(waits."bucket") FROM public."RollupPending" AS waits
                WHERE waits."unit" = 'hour' AND waits."bucket" >= before."coveredUntil"
            ) END,
            CASE WHEN rolled = 'ProcessFleetHour' THEN (
                SELECT min(waits."bucket") FROM public."RollupPending" AS waits
                WHERE waits."unit" = 'fleet' AND waits."bucket" >= before."coveredUntil"
            ) END
        ) AS "until"
    ) AS moved
    WHERE state."relation" = rolled AND before."relation" = rolled AND state."coveredUntil" < moved."until"
$$;

COMMENT ON FUNCTION public.guestd_advance_rollup(text, timestamptz) IS
'Advances coveredUntil of a roll-up to a time, or to its oldest pending bucket that is not covered yet.';

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
'The time before which the roll-ups cover a series completely; NULL for a relation without roll-ups.';

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
        RAISE EXCEPTION '% has no row in RetentionSetting: insert one to give it a retention.', quote_nullable(pruned)
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
    WHEN 'VmPort' THEN
        DELETE FROM public."VmPort" WHERE "isAutomatic" AND NOT "running" AND "lastSeen" < cutoff;
        GET DIAGNOSTICS dropped = ROW_COUNT;
    WHEN 'WindowsService' THEN
        -- The newest lists of a machine that is off stay: only a newer list shows that a service is gone.
        DELETE FROM public."WindowsService" AS gone
        WHERE gone."lastSeen" < cutoff
            AND gone."machineId" IN (
                SELECT listed."machineId" FROM public."WindowsService" AS listed WHERE listed."lastSeen" >= cutoff
            );
        GET DIAGNOSTICS dropped = ROW_COUNT;
    WHEN 'ServiceStateHistory' THEN
        DELETE FROM public."ServiceStateHistory" WHERE "timestamp" < cutoff;
        GET DIAGNOSTICS dropped = ROW_COUNT;
    ELSE
        SELECT count(*) INTO dropped
        FROM public.drop_chunks(format('public.%I', pruned)::regclass, older_than => cutoff);
    END CASE;
    RETURN dropped;
END;
$$;

COMMENT ON FUNCTION public.guestd_enforce_retention(text) IS
'Drops from a relation what RetentionDue lists; returns the number of chunks, or of rows of a plain table; 0 while another session drops.';
