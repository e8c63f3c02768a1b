-- Roll-ups and retention. Design: docs/decisions/0037 and 0038.
-- %(rollup_...)s are lists of columns: gueststore.column_lists.

-- Functions without SET are put into the queries that call them, which costs nothing for a row; RETURN is parsed now, so
-- that no search_path changes it.
-- NaN is greater than every number.
CREATE OR REPLACE FUNCTION public.guestd_bounded(figure double precision) RETURNS double precision
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN CASE
    WHEN figure > 1e18 THEN 1e18
    WHEN figure < -1e18 THEN -1e18
    WHEN figure > -1e-18 AND figure < 1e-18 THEN 0
    ELSE figure
END;

COMMENT ON FUNCTION public.guestd_bounded(double precision) IS
'A figure that sums, means, products and quotients of any number of rows can hold: within -10^18 and 10^18, 0 nearer to 0 than 10^-18, 10^18 for NaN.';

CREATE OR REPLACE FUNCTION public.guestd_bounded(figure numeric) RETURNS double precision
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN CASE
    WHEN figure > 1e18 THEN 1e18
    WHEN figure < -1e18 THEN -1e18
    WHEN figure > -1e-18 AND figure < 1e-18 THEN 0
    ELSE figure::double precision
END;

COMMENT ON FUNCTION public.guestd_bounded(numeric) IS
'The same of a number of a JSON text, which may have any number of digits.';

CREATE OR REPLACE FUNCTION public.guestd_sum_of(stats jsonb, key text) RETURNS double precision
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT sum(public.guestd_bounded((element -> key)::numeric))
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
    SELECT CASE jsonb_typeof(stats -> key) WHEN 'number' THEN public.guestd_bounded((stats -> key)::numeric) END
$$;

COMMENT ON FUNCTION public.guestd_number_of(jsonb, text) IS
'A number of an object, bounded by guestd_bounded; NULL when the object has none.';

CREATE OR REPLACE FUNCTION public.guestd_process_names_kept() RETURNS integer
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN 1000;

COMMENT ON FUNCTION public.guestd_process_names_kept() IS
'Process names of a machine that an hour of ProcessUsageHour keeps; docs/decisions/0041 says why so many.';

CREATE OR REPLACE FUNCTION public.guestd_process_usage(machine uuid, since timestamptz, until timestamptz)
RETURNS TABLE (
    "bucket" timestamptz,
    "name" text,
    "samples" bigint,
    "cpuUsagePercentSum" double precision,
    "cpuUsagePercentMax" double precision,
    "memoryUsageKBSum" bigint,
    "memoryUsageKBMax" bigint
)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        ranked.hour,
        -- A process of that name is one of the others.
        CASE WHEN ranked.place <= public.guestd_process_names_kept() THEN ranked.name ELSE '(other)' END AS kept,
        sum(ranked.samples)::bigint,
        sum(ranked.cpu)::double precision / 4294967296,
        least(max(ranked.cpu_max), 1e6),
        least(greatest(sum(ranked.memory), -9223372036854775808), 9223372036854775807)::bigint,
        max(ranked.memory_max)
    FROM (
        SELECT
            hours.hour,
            named.*,
            row_number() OVER (
                PARTITION BY hours.hour
                ORDER BY named.cpu DESC, named.memory DESC, named.samples DESC, named.name COLLATE "C"
            ) AS place
        FROM (
            SELECT generate_series(
                date_bin(INTERVAL '1 hour', min(process."timestamp"), '2000-01-01 00:00:00+00'),
                max(process."timestamp"),
                INTERVAL '1 hour'
            ) AS hour
            FROM public."ProcessSnapshot" AS process
            WHERE process."machineId" = machine AND process."timestamp" >= since AND process."timestamp" < until
        ) AS hours
        -- Hour by hour: computing the hour of each row takes a tenth of the time.
        CROSS JOIN LATERAL (
            SELECT
                process."name" AS name,
                count(*) AS samples,
                -- In whole 2^-32 of a percent: a sum of whole numbers is the same in every order, so that an hour that
                -- is computed again keeps the same names.
                sum((least(process."cpuUsagePercent", 1e6) * 4294967296)::bigint) AS cpu,
                max(process."cpuUsagePercent") AS cpu_max,
                sum(process."memoryUsageKB") AS memory,
                max(process."memoryUsageKB") AS memory_max
            FROM public."ProcessSnapshot" AS process
            WHERE process."machineId" = machine
                AND process."timestamp" >= greatest(since, hours.hour)
                AND process."timestamp" < least(until, hours.hour + INTERVAL '1 hour')
            GROUP BY process."name"
        ) AS named
    ) AS ranked
    GROUP BY 1, 2
$$;

COMMENT ON FUNCTION public.guestd_process_usage(uuid, timestamptz, timestamptz) IS
'The rows of ProcessUsageHour for a machine, computed from its samples in [since, until): of each hour the names that used most CPU, then most memory, and all others together as (other).';

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
    -- A quarter of them; of a single one, one in four.
    elsewhere CONSTANT integer := (most + floor(random() * 4)::integer) / 4;
    chosen timestamptz;
    found_machines uuid[];
    found_buckets timestamptz[];
    found_ids bigint[];
    known uuid[];
BEGIN
    SELECT min(waits."bucket") + random() * (max(waits."bucket") - min(waits."bucket")) INTO chosen
    FROM public."RollupPending" AS waits
    WHERE waits."unit" = wanted_unit AND waits."bucket" < closed;
    SELECT array_agg(due."machineId"), array_agg(due."bucket"), array_agg(due."id")
    INTO found_machines, found_buckets, found_ids
    FROM (
        (
            SELECT waits."machineId", waits."bucket", waits."id"
            FROM public."RollupPending" AS waits
            WHERE waits."unit" = wanted_unit AND waits."bucket" < closed AND coalesce(waits."retryAt" <= now(), TRUE)
            -- The newest first: people read those, and late samples of one machine do not hold them up.
            ORDER BY waits."bucket" DESC, waits."machineId" DESC, waits."id" DESC
            LIMIT most - elsewhere
        )
        UNION
        (
            SELECT waits."machineId", waits."bucket", waits."id"
            FROM public."RollupPending" AS waits
            WHERE waits."unit" = wanted_unit AND waits."bucket" <= chosen AND coalesce(waits."retryAt" <= now(), TRUE)
            -- From a time that nobody can choose: a machine whose samples are always late does not hold up older ones.
            ORDER BY waits."bucket" DESC, waits."machineId" DESC, waits."id" DESC
            LIMIT elsewhere
        )
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
        -- What failed before is computed with it: it waits no longer.
        AND (waits."id" = due.id OR waits."retryAt" IS NOT NULL);
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
'Removes closed buckets from RollupPending, the newest and a quarter from another time, and returns them as pairs of machine and bucket. A visible row was committed together with its samples.';

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
    BEGIN
        PERFORM public.guestd_compute_minutes(due.machines, due.buckets);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        PERFORM public.guestd_compute_each('minute', due.machines, due.buckets);
    END;
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
    BEGIN
        PERFORM public.guestd_compute_hours(due.machines, due.buckets);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        PERFORM public.guestd_compute_each('hour', due.machines, due.buckets);
    END;
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
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before record;
BEGIN
    -- Hours that were computed before: a name that they kept may now be one of the others.
    FOR before IN
        SELECT pair.machine, pair.bucket, pair.place, stored."samples"
        FROM unnest(machines, buckets) WITH ORDINALITY AS pair (machine, bucket, place)
        CROSS JOIN LATERAL (
            SELECT sum(rolled."samples") AS "samples"
            FROM public."ProcessUsageHour" AS rolled
            WHERE rolled."machineId" = pair.machine AND rolled."bucket" = pair.bucket
        ) AS stored
        WHERE stored."samples" IS NOT NULL
    LOOP
        IF before."samples" > (
            SELECT count(*) FROM public."ProcessSnapshot" AS process
            WHERE process."machineId" = before.machine
                AND process."timestamp" >= before.bucket AND process."timestamp" < before.bucket + INTERVAL '1 hour'
        ) THEN
            -- Retention has dropped samples of this hour: what is stored is more complete.
            machines[before.place] := NULL;
        ELSE
            DELETE FROM public."ProcessUsageHour" AS rolled
            WHERE rolled."machineId" = before.machine AND rolled."bucket" = before.bucket;
        END IF;
    END LOOP;
    INSERT INTO public."ProcessUsageHour"
    SELECT pair.machine, used.*
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    CROSS JOIN LATERAL public.guestd_process_usage(pair.machine, pair.bucket, pair.bucket + INTERVAL '1 hour') AS used;
END;
$$;

COMMENT ON FUNCTION public.guestd_roll_up_process_hours(uuid [], timestamptz []) IS
'Recomputes hours of ProcessUsageHour from their samples; each hour of a machine must be given once.';

CREATE OR REPLACE FUNCTION public.guestd_day_rows_kept() RETURNS integer
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN 4000;

COMMENT ON FUNCTION public.guestd_day_rows_kept() IS
'Rows of a machine that a day of ApplicationUsageDay, and of ListeningPortDay, keeps; docs/decisions/0041 says why so many.';

CREATE OR REPLACE FUNCTION public.guestd_roll_up_days(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A day is the minimum and maximum of its hours: merging an hour twice changes nothing. Of too many rows a day keeps
    -- the first by their key, which are the same in whatever order hours are merged.
    INSERT INTO public."ApplicationUsageDay" AS rolled
    SELECT used.machine, used.day, used."executablePath", used.minutes_min, used.minutes_max, used.starts_min, used.starts_max
    FROM (
        SELECT
            pair.machine,
            date_trunc('day', pair.bucket, 'UTC') AS day,
            usage."executablePath",
            min(usage."totalUsageMinutes") AS minutes_min,
            max(usage."totalUsageMinutes") AS minutes_max,
            min(usage."accessCount") AS starts_min,
            max(usage."accessCount") AS starts_max,
            row_number() OVER (
                PARTITION BY pair.machine, date_trunc('day', pair.bucket, 'UTC')
                ORDER BY usage."executablePath" COLLATE "C"
            ) AS place
        FROM unnest(machines, buckets) AS pair (machine, bucket)
        CROSS JOIN LATERAL (
            SELECT used."executablePath", used."totalUsageMinutes", used."accessCount"
            FROM public."ApplicationUsageHistory" AS used
            WHERE used."machineId" = pair.machine
                AND used."timestamp" >= pair.bucket AND used."timestamp" < pair.bucket + INTERVAL '1 hour'
        ) AS usage
        GROUP BY 1, 2, 3
    ) AS used
    WHERE used.place <= public.guestd_day_rows_kept()
    ON CONFLICT ("machineId", "bucket", "executablePath") DO UPDATE SET
        "totalUsageMinutesMin" = least(rolled."totalUsageMinutesMin", excluded."totalUsageMinutesMin"),
        "totalUsageMinutesMax" = greatest(rolled."totalUsageMinutesMax", excluded."totalUsageMinutesMax"),
        "accessCountMin" = least(rolled."accessCountMin", excluded."accessCountMin"),
        "accessCountMax" = greatest(rolled."accessCountMax", excluded."accessCountMax");
    INSERT INTO public."ListeningPortDay" AS rolled
    SELECT
        listening.machine, listening.day, listening."port", listening."protocol", listening.process, listening.path,
        listening.first_seen, listening.last_seen, listening.connections
    FROM (
        SELECT
            pair.machine,
            date_trunc('day', pair.bucket, 'UTC') AS day,
            usage."port",
            usage."protocol",
            coalesce(usage."processName", '') AS process,
            max(usage."executablePath" COLLATE "C") AS path,
            min(usage."timestamp") AS first_seen,
            max(usage."timestamp") AS last_seen,
            max(usage."connectionCount") AS connections,
            row_number() OVER (
                PARTITION BY pair.machine, date_trunc('day', pair.bucket, 'UTC')
                ORDER BY usage."port", usage."protocol" COLLATE "C", coalesce(usage."processName", '') COLLATE "C"
            ) AS place
        FROM unnest(machines, buckets) AS pair (machine, bucket)
        CROSS JOIN LATERAL (
            SELECT
                used."port", used."protocol", used."processName", used."executablePath", used."timestamp",
                used."connectionCount"
            FROM public."PortUsage" AS used
            WHERE used."machineId" = pair.machine AND used."isListening"
                AND used."timestamp" >= pair.bucket AND used."timestamp" < pair.bucket + INTERVAL '1 hour'
        ) AS usage
        GROUP BY 1, 2, 3, 4, 5
    ) AS listening
    WHERE listening.place <= public.guestd_day_rows_kept()
    ON CONFLICT ("machineId", "bucket", "port", "protocol", "processName") DO UPDATE SET
        "executablePath" = greatest(rolled."executablePath" COLLATE "C", excluded."executablePath" COLLATE "C"),
        "firstSeen" = least(rolled."firstSeen", excluded."firstSeen"),
        "lastSeen" = greatest(rolled."lastSeen", excluded."lastSeen"),
        "connectionCountMax" = greatest(rolled."connectionCountMax", excluded."connectionCountMax");
    PERFORM public.guestd_trim_days(machines, buckets);
END;
$$;

COMMENT ON FUNCTION public.guestd_roll_up_days(uuid [], timestamptz []) IS
'Merges hours into the days of ApplicationUsageDay and ListeningPortDay, of which each keeps guestd_day_rows_kept() rows of a machine.';

CREATE OR REPLACE FUNCTION public.guestd_trim_days(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    trimmed record;
BEGIN
    -- Day by day through the index: a join would read the whole table. Hardly any day has too many rows.
    FOR trimmed IN
        SELECT pair.machine, pair.day, beyond."executablePath"
        FROM (
            SELECT DISTINCT hour.machine, date_trunc('day', hour.bucket, 'UTC') AS day
            FROM unnest(machines, buckets) AS hour (machine, bucket)
        ) AS pair
        CROSS JOIN LATERAL (
            SELECT rolled."executablePath" FROM public."ApplicationUsageDay" AS rolled
            WHERE rolled."machineId" = pair.machine AND rolled."bucket" = pair.day
            ORDER BY rolled."executablePath" COLLATE "C"
            OFFSET public.guestd_day_rows_kept() LIMIT 1
        ) AS beyond
    LOOP
        DELETE FROM public."ApplicationUsageDay" AS rolled
        WHERE rolled."machineId" = trimmed.machine AND rolled."bucket" = trimmed.day
            AND rolled."executablePath" COLLATE "C" >= trimmed."executablePath";
    END LOOP;
    FOR trimmed IN
        SELECT pair.machine, pair.day, beyond."port", beyond."protocol", beyond."processName"
        FROM (
            SELECT DISTINCT hour.machine, date_trunc('day', hour.bucket, 'UTC') AS day
            FROM unnest(machines, buckets) AS hour (machine, bucket)
        ) AS pair
        CROSS JOIN LATERAL (
            SELECT rolled."port", rolled."protocol", rolled."processName" FROM public."ListeningPortDay" AS rolled
            WHERE rolled."machineId" = pair.machine AND rolled."bucket" = pair.day
            ORDER BY rolled."port", rolled."protocol" COLLATE "C", rolled."processName" COLLATE "C"
            OFFSET public.guestd_day_rows_kept() LIMIT 1
        ) AS beyond
    LOOP
        DELETE FROM public."ListeningPortDay" AS rolled
        WHERE rolled."machineId" = trimmed.machine AND rolled."bucket" = trimmed.day
            AND (rolled."port", rolled."protocol" COLLATE "C", rolled."processName" COLLATE "C")
            >= (trimmed."port", trimmed."protocol", trimmed."processName");
    END LOOP;
END;
$$;

COMMENT ON FUNCTION public.guestd_trim_days(uuid [], timestamptz []) IS
'Deletes from the days of these hours the rows beyond guestd_day_rows_kept(): the last programs by path, the highest ports.';

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
            avg(public.guestd_bounded(rolled."cpuUsagePercentAvg")),
            max(rolled."cpuUsagePercentMax"),
            avg(public.guestd_bounded(rolled."usedMemoryKBAvg"))
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
        WHERE waits."unit" = 'fleet' AND coalesce(waits."retryAt" <= now(), TRUE)
        ORDER BY waits."bucket" DESC
        LIMIT most
    );
    DELETE FROM public."RollupPending" WHERE "unit" = 'fleet' AND "bucket" = ANY(hours);
    BEGIN
        PERFORM public.guestd_compute_fleet(hours);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        PERFORM public.guestd_compute_each(
            'fleet', array_fill('00000000-0000-0000-0000-000000000000'::uuid, ARRAY[cardinality(hours)]), hours
        );
    END;
    PERFORM public.guestd_advance_rollup('ProcessFleetHour', closed);
    RETURN cardinality(hours);
END;
$$;

COMMENT ON FUNCTION public.guestd_roll_up_fleet(integer) IS
'Recomputes up to that many pending hours of the fleet from those of the machines; returns their number, 0 when none is pending or another session rolls up.';

CREATE OR REPLACE FUNCTION public.guestd_compute_minutes(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public."SystemMetricsMinute" AS rolled
    SELECT pair.machine, pair.bucket, minute.*
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    CROSS JOIN LATERAL public.guestd_system_metrics_between(
        pair.machine, pair.bucket, pair.bucket + INTERVAL '1 minute'
    ) AS minute
    WHERE minute."samples" > 0
    ON CONFLICT ("machineId", "bucket") DO UPDATE SET
        %(rollup_updates)s;
    INSERT INTO public."RollupPending" ("unit", "bucket", "machineId")
    SELECT DISTINCT 'hour', date_trunc('hour', pair.bucket, 'UTC'), pair.machine
    FROM unnest(machines, buckets) AS pair (machine, bucket)
    WHERE NOT EXISTS (
        SELECT FROM public."RollupPending" AS waits
        WHERE waits."unit" = 'hour' AND waits."bucket" = date_trunc('hour', pair.bucket, 'UTC')
            AND waits."machineId" = pair.machine
    );
    PERFORM public.guestd_roll_up_fleet_minutes(ARRAY(SELECT DISTINCT unnest(buckets)));
END;
$$;

COMMENT ON FUNCTION public.guestd_compute_minutes(uuid [], timestamptz []) IS
'Recomputes minutes of machines and of the fleet, and adds their hours to RollupPending.';

CREATE OR REPLACE FUNCTION public.guestd_compute_hours(machines uuid [], buckets timestamptz []) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM public.guestd_roll_up_system_hours(machines, buckets);
    PERFORM public.guestd_roll_up_process_hours(machines, buckets);
    PERFORM public.guestd_roll_up_days(machines, buckets);
    PERFORM public.guestd_note_fleet(buckets);
END;
$$;

COMMENT ON FUNCTION public.guestd_compute_hours(uuid [], timestamptz []) IS
'Recomputes hours of machines, merges them into their days, and adds the hours of the fleet to RollupPending.';

CREATE OR REPLACE FUNCTION public.guestd_compute_fleet(hours timestamptz []) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM public.guestd_roll_up_fleet_minutes(ARRAY(
        SELECT hour + place * INTERVAL '1 minute' FROM unnest(hours) AS hour, generate_series(0, 59) AS place
    ));
    DELETE FROM public."ProcessFleetHour" WHERE "bucket" = ANY(hours);
    INSERT INTO public."ProcessFleetHour"
    SELECT
        used."bucket",
        used."name",
        count(*),
        sum(public.guestd_bounded(used."cpuUsagePercentSum") / greatest(messages."samples", 1)),
        sum(used."memoryUsageKBSum" / greatest(messages."samples", 1)::double precision)
    FROM public."ProcessUsageHour" AS used
    INNER JOIN public."SystemMetricsHour" AS messages
        ON messages."machineId" = used."machineId" AND messages."bucket" = used."bucket"
    WHERE used."bucket" = ANY(hours) AND messages."bucket" = ANY(hours)
    GROUP BY used."bucket", used."name";
END;
$$;

COMMENT ON FUNCTION public.guestd_compute_fleet(timestamptz []) IS
'Recomputes hours of the fleet, and their minutes, from those of the machines.';

CREATE OR REPLACE FUNCTION public.guestd_compute_each(
    wanted_unit text, machines uuid [], buckets timestamptz []
) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pair record;
BEGIN
    FOR pair IN SELECT due.machine, due.bucket FROM unnest(machines, buckets) AS due (machine, bucket) LOOP
        BEGIN
            CASE wanted_unit
            WHEN 'minute' THEN PERFORM public.guestd_compute_minutes(ARRAY[pair.machine], ARRAY[pair.bucket]);
            WHEN 'hour' THEN PERFORM public.guestd_compute_hours(ARRAY[pair.machine], ARRAY[pair.bucket]);
            ELSE PERFORM public.guestd_compute_fleet(ARRAY[pair.bucket]);
            END CASE;
        EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
            INSERT INTO public."RollupPending" ("unit", "bucket", "machineId", "retryAt", "error")
            VALUES (wanted_unit, pair.bucket, pair.machine, now() + INTERVAL '1 hour', SQLSTATE || ': ' || SQLERRM);
        END;
    END LOOP;
END;
$$;

COMMENT ON FUNCTION public.guestd_compute_each(text, uuid [], timestamptz []) IS
'Recomputes periods one by one; one that fails is pending again, to be tried in an hour.';

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
        -- hour, and does not hold up the others; nor does what could not be computed.
        SELECT least(
            closed,
            -- An hour is covered when all its minutes are.
            date_trunc(
                CASE WHEN rolled IN ('SystemMetricsMinute', 'SystemFleetMinute') THEN 'minute' ELSE 'hour' END,
                (
                    SELECT min(waits."bucket") FROM public."RollupPending" AS waits
                    WHERE waits."unit" = 'minute' AND waits."bucket" >= before."coveredUntil" AND waits."retryAt" IS NULL
                ),
                'UTC'
            ),
            CASE WHEN rolled NOT IN ('SystemMetricsMinute', 'SystemFleetMinute') THEN (
                SELECT min(waits."bucket") FROM public."RollupPending" AS waits
                WHERE waits."unit" = 'hour' AND waits."bucket" >= before."coveredUntil" AND waits."retryAt" IS NULL
            ) END,
            CASE WHEN rolled = 'ProcessFleetHour' THEN (
                SELECT min(waits."bucket") FROM public."RollupPending" AS waits
                WHERE waits."unit" = 'fleet' AND waits."bucket" >= before."coveredUntil" AND waits."retryAt" IS NULL
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
