-- Functions that triggers call. Each is whole and current here; a change is applied by the next migrate.

CREATE OR REPLACE FUNCTION public.guestd_touch_updated_at() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A client that sends updatedAt with every update (Prisma does) is overruled: the column says when the
    -- content changed, and what libvirt has of it (flushedAt, problem) is no content.
    IF to_jsonb(NEW) - ARRAY['updatedAt', 'flushedAt', 'problem']
        IS DISTINCT FROM to_jsonb(OLD) - ARRAY['updatedAt', 'flushedAt', 'problem'] THEN
        NEW."updatedAt" := clock_timestamp();
    ELSE
        NEW."updatedAt" := OLD."updatedAt";
    END IF;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION public.guestd_touch_updated_at() IS
'Keeps updatedAt: server time of the last change other than to flushedAt or problem.';

CREATE OR REPLACE FUNCTION public.guestd_announce_machines() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('guestd_machine', '');
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_announce_machines() IS
'Wakes daemons that listen on guestd_machine; the notice carries no truth, they look again.';

CREATE OR REPLACE FUNCTION public.guestd_announce_wishes() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('guestd_wish', '');
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_announce_wishes() IS
'Wakes daemons that listen on guestd_wish: what is wanted of machines has changed; they look again.';

CREATE OR REPLACE FUNCTION public.guestd_announce_filters() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('guestd_filter', '');
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_announce_filters() IS
'Wakes daemons that listen on guestd_filter: what machines may send or receive has changed; they look again.';

CREATE OR REPLACE FUNCTION public.guestd_keep_machine_id() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'The id of a machine never changes: its samples and its socket go by it.'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'Machine_id_never_changes', TABLE = 'Machine';
END;
$$;

COMMENT ON FUNCTION public.guestd_keep_machine_id() IS
'Refuses a change of Machine.id, which no foreign key would carry on into the hypertables.';

CREATE OR REPLACE FUNCTION public.guestd_end_session() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW."token" := 'null';
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION public.guestd_end_session() IS 'Takes the session token from a user who is deleted.';

CREATE OR REPLACE FUNCTION public.guestd_delete_samples() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM public."SystemMetrics" AS sample USING deleted WHERE sample."machineId" = deleted."id";
    DELETE FROM public."ProcessSnapshot" AS sample USING deleted WHERE sample."machineId" = deleted."id";
    DELETE FROM public."PortUsage" AS sample USING deleted WHERE sample."machineId" = deleted."id";
    DELETE FROM public."ApplicationUsageHistory" AS sample USING deleted WHERE sample."machineId" = deleted."id";
    PERFORM public.guestd_note_fleet_of(ARRAY(SELECT deleted."id" FROM deleted));
    DELETE FROM public."SystemMetricsMinute" AS rolled USING deleted WHERE rolled."machineId" = deleted."id";
    DELETE FROM public."SystemMetricsHour" AS rolled USING deleted WHERE rolled."machineId" = deleted."id";
    DELETE FROM public."ProcessUsageHour" AS rolled USING deleted WHERE rolled."machineId" = deleted."id";
    DELETE FROM public."ApplicationUsageDay" AS rolled USING deleted WHERE rolled."machineId" = deleted."id";
    DELETE FROM public."ListeningPortDay" AS rolled USING deleted WHERE rolled."machineId" = deleted."id";
    DELETE FROM public."RollupPending" AS waits USING deleted WHERE waits."machineId" = deleted."id";
    -- At READ COMMITTED each statement above saw all that was committed before this delete got the Machine's lock,
    -- and that is all there is. Above it they saw an older snapshot and may have missed rows: somebody must look again.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        INSERT INTO public."DeletedMachine" ("id") SELECT deleted."id" FROM deleted ON CONFLICT ("id") DO NOTHING;
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_delete_samples() IS
'Deletes the samples of deleted machines, as the cascade of a foreign key would.';

CREATE OR REPLACE FUNCTION public.guestd_truncate_samples() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    TRUNCATE public."SystemMetrics";
    TRUNCATE public."ProcessSnapshot";
    TRUNCATE public."PortUsage";
    TRUNCATE public."ApplicationUsageHistory";
    TRUNCATE public."SystemMetricsMinute";
    TRUNCATE public."SystemMetricsHour";
    TRUNCATE public."ProcessUsageHour";
    TRUNCATE public."ApplicationUsageDay";
    TRUNCATE public."ListeningPortDay";
    TRUNCATE public."SystemFleetMinute";
    TRUNCATE public."ProcessFleetHour";
    TRUNCATE public."RollupPending";
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_truncate_samples() IS 'Empties the hypertables when Machine is truncated.';

CREATE OR REPLACE FUNCTION public.guestd_sweep_deleted_machines() RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    swept uuid[];
    total bigint := 0;
    found_rows bigint;
BEGIN
    -- A tombstone that can be seen was committed, and every writer that knew the machine had committed before it.
    WITH tombstone AS (DELETE FROM public."DeletedMachine" RETURNING "id")
    SELECT array_agg(tombstone."id") INTO swept FROM tombstone;
    DELETE FROM public."SystemMetrics" AS sample USING unnest(swept) AS gone WHERE sample."machineId" = gone;
    GET DIAGNOSTICS found_rows = ROW_COUNT; total := total + found_rows;
    DELETE FROM public."ProcessSnapshot" AS sample USING unnest(swept) AS gone WHERE sample."machineId" = gone;
    GET DIAGNOSTICS found_rows = ROW_COUNT; total := total + found_rows;
    DELETE FROM public."PortUsage" AS sample USING unnest(swept) AS gone WHERE sample."machineId" = gone;
    GET DIAGNOSTICS found_rows = ROW_COUNT; total := total + found_rows;
    DELETE FROM public."ApplicationUsageHistory" AS sample USING unnest(swept) AS gone WHERE sample."machineId" = gone;
    GET DIAGNOSTICS found_rows = ROW_COUNT; total := total + found_rows;
    PERFORM public.guestd_note_fleet_of(swept);
    DELETE FROM public."SystemMetricsMinute" AS rolled USING unnest(swept) AS gone WHERE rolled."machineId" = gone;
    DELETE FROM public."SystemMetricsHour" AS rolled USING unnest(swept) AS gone WHERE rolled."machineId" = gone;
    DELETE FROM public."ProcessUsageHour" AS rolled USING unnest(swept) AS gone WHERE rolled."machineId" = gone;
    DELETE FROM public."ApplicationUsageDay" AS rolled USING unnest(swept) AS gone WHERE rolled."machineId" = gone;
    DELETE FROM public."ListeningPortDay" AS rolled USING unnest(swept) AS gone WHERE rolled."machineId" = gone;
    DELETE FROM public."RollupPending" AS waits USING unnest(swept) AS gone WHERE waits."machineId" = gone;
    RETURN total;
END;
$$;

COMMENT ON FUNCTION public.guestd_sweep_deleted_machines() IS
'Deletes what is left of machines with a tombstone and the tombstones; returns the number of samples deleted.';

CREATE OR REPLACE FUNCTION public.guestd_create_chunk(relation text, at timestamptz) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
BEGIN
    -- Every chunk costs every query; nobody needs one far from now.
    IF at IS NULL OR at NOT BETWEEN now() - INTERVAL '1 day' AND now() + INTERVAL '30 days' THEN
        RAISE EXCEPTION 'A chunk is created from a day ago to 30 days ahead, not for %.', at
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A row that is written and deleted makes its chunk, also on the Apache edition, which has no create_chunk.
    CASE relation
    WHEN 'SystemMetrics' THEN
        INSERT INTO public."SystemMetrics" (
            "machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB", "usedMemoryKB",
            "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime"
        ) VALUES (nobody, at, 0, '[]', 0, 0, 0, '[]', '{}', '[]', 0);
        DELETE FROM public."SystemMetrics" WHERE "machineId" = nobody AND "timestamp" = at::timestamptz(3);
    WHEN 'ProcessSnapshot' THEN
        INSERT INTO public."ProcessSnapshot" (
            "machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB", "status"
        ) VALUES (nobody, at, -1, '', 0, 0, '');
        DELETE FROM public."ProcessSnapshot" WHERE "machineId" = nobody AND "timestamp" = at::timestamptz(3);
    WHEN 'PortUsage' THEN
        INSERT INTO public."PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state")
        VALUES (nobody, at, -1, 0, '', '');
        DELETE FROM public."PortUsage" WHERE "machineId" = nobody AND "timestamp" = at::timestamptz(3);
    WHEN 'ApplicationUsageHistory' THEN
        INSERT INTO public."ApplicationUsageHistory" (
            "machineId", "timestamp", "executablePath", "accessCount", "totalUsageMinutes", "isActive"
        ) VALUES (nobody, at, '', 0, 0, FALSE);
        DELETE FROM public."ApplicationUsageHistory" WHERE "machineId" = nobody AND "timestamp" = at::timestamptz(3);
    ELSE
        RAISE EXCEPTION '% is not a series of guestd.', quote_nullable(relation)
            USING ERRCODE = 'invalid_parameter_value';
    END CASE;
END;
$$;

COMMENT ON FUNCTION public.guestd_create_chunk(text, timestamptz) IS
'Makes sure that the chunk of a series for a time exists, so that ingest does not have to create it.';

CREATE OR REPLACE FUNCTION public.guestd_trim_events(keep_days integer, keep_per_machine integer) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total bigint;
    found_rows bigint;
BEGIN
    -- A wrong argument must not empty the table.
    IF keep_days IS NULL OR keep_days < 1 OR keep_per_machine IS NULL OR keep_per_machine < 1 THEN
        RAISE EXCEPTION 'Events are kept for at least a day, and at least one a machine; not % days, % events.',
            keep_days, keep_per_machine
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM public."GuestEvent" AS event
    WHERE event."receivedAt" < now() - make_interval(days => keep_days);
    GET DIAGNOSTICS total = ROW_COUNT;
    WITH surplus AS (
        SELECT
            event."id",
            row_number() OVER (PARTITION BY event."machineId" ORDER BY event."receivedAt" DESC, event."id") AS place
        FROM public."GuestEvent" AS event
    )
    DELETE FROM public."GuestEvent" AS event USING surplus
    WHERE event."id" = surplus."id" AND surplus.place > keep_per_machine;
    GET DIAGNOSTICS found_rows = ROW_COUNT;
    RETURN total + found_rows;
END;
$$;

COMMENT ON FUNCTION public.guestd_trim_events(integer, integer) IS
'Deletes events of guests that are older than so many days, and all but the newest so many of each machine; returns how many.';
