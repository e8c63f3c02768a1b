-- Functions of triggers and of maintenance. The next migrate applies a change.

CREATE OR REPLACE FUNCTION public.guestd_touch_updated_at() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Overrides clients that send updatedAt with every update (Prisma does): the column is the time of the last change
    -- of the content. The state in libvirt (flushedAt, problem) is not content.
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
'Sets updatedAt to the server time of the last change, except changes of flushedAt and problem.';

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
'Notifies guestd_machine: the machines have changed. The notification has no payload; listeners read the tables again.';

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
'Notifies guestd_wish: the desired state of machines has changed. Listeners read the tables again.';

CREATE OR REPLACE FUNCTION public.guestd_keep_desired_since() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF new."desiredStatus" IS NOT NULL THEN
            new."desiredSince" := clock_timestamp();
        END IF;
    ELSIF new."desiredStatus" IS DISTINCT FROM old."desiredStatus" THEN
        new."desiredSince" := clock_timestamp();
    ELSE
        new."desiredSince" := old."desiredSince";
    END IF;
    RETURN new;
END;
$$;

COMMENT ON FUNCTION public.guestd_keep_desired_since() IS
'Keeps Machine.desiredSince: when desiredStatus last changed.';

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
'Notifies guestd_filter: the filters of machines have changed. Listeners read the tables again.';

CREATE OR REPLACE FUNCTION public.guestd_keep_machine_id() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'The id of a machine never changes: its samples and its socket refer to it.'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'Machine_id_never_changes', TABLE = 'Machine';
END;
$$;

COMMENT ON FUNCTION public.guestd_keep_machine_id() IS
'Refuses a change of Machine.id: no foreign key would cascade it to the hypertables.';

CREATE OR REPLACE FUNCTION public.guestd_end_session() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW."token" := 'null';
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION public.guestd_end_session() IS 'Removes the session token of a deleted user.';

CREATE OR REPLACE FUNCTION public.guestd_machine_tables(OUT series text [], OUT rollups text [])
LANGUAGE sql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        ARRAY['SystemMetrics', 'ProcessSnapshot', 'PortUsage', 'ApplicationUsageHistory'],
        ARRAY[
            'SystemMetricsMinute', 'SystemMetricsHour', 'ProcessUsageHour', 'ApplicationUsageDay', 'ListeningPortDay',
            'RollupPending'
        ]
$$;

COMMENT ON FUNCTION public.guestd_machine_tables() IS
'The tables whose rows belong to a machine but have no foreign key: the series of samples, and the roll-ups with their log.';

CREATE OR REPLACE FUNCTION public.guestd_delete_machine_rows(machines uuid []) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tables CONSTANT record := public.guestd_machine_tables();
    relation text;
    deleted_rows bigint;
    total bigint := 0;
BEGIN
    FOREACH relation IN ARRAY tables.series LOOP
        EXECUTE format('DELETE FROM public.%I WHERE "machineId" = ANY($1)', relation) USING machines;
        GET DIAGNOSTICS deleted_rows = ROW_COUNT;
        total := total + deleted_rows;
    END LOOP;
    -- Before the roll-ups are deleted: it reads from them which hours of the fleet to compute again.
    PERFORM public.guestd_note_fleet_of(machines);
    FOREACH relation IN ARRAY tables.rollups LOOP
        EXECUTE format('DELETE FROM public.%I WHERE "machineId" = ANY($1)', relation) USING machines;
    END LOOP;
    RETURN total;
END;
$$;

COMMENT ON FUNCTION public.guestd_delete_machine_rows(uuid []) IS
'Deletes the samples and roll-ups of machines; returns the number of samples deleted.';

CREATE OR REPLACE FUNCTION public.guestd_delete_samples() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM public.guestd_delete_machine_rows(ARRAY(SELECT deleted."id" FROM deleted));
    -- At READ COMMITTED every statement of it saw all rows that were committed before this delete locked the Machine,
    -- and no later ones exist. At a higher level it saw an older snapshot and may have missed rows: leave a tombstone
    -- for guestd_sweep_deleted_machines.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        INSERT INTO public."DeletedMachine" ("id") SELECT deleted."id" FROM deleted ON CONFLICT ("id") DO NOTHING;
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_delete_samples() IS
'Deletes the samples and roll-ups of deleted machines, as the cascade of a foreign key would.';

CREATE OR REPLACE FUNCTION public.guestd_truncate_samples() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tables CONSTANT record := public.guestd_machine_tables();
    relation text;
BEGIN
    FOREACH relation IN ARRAY tables.series || tables.rollups || ARRAY['SystemFleetMinute', 'ProcessFleetHour'] LOOP
        EXECUTE format('TRUNCATE public.%I', relation);
    END LOOP;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION public.guestd_truncate_samples() IS
'Truncates the tables of samples and roll-ups when Machine is truncated.';

CREATE OR REPLACE FUNCTION public.guestd_sweep_deleted_machines() RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    swept uuid[];
BEGIN
    -- A visible tombstone is committed, and every writer that had locked the machine committed before it.
    WITH tombstone AS (DELETE FROM public."DeletedMachine" RETURNING "id")
    SELECT array_agg(tombstone."id") INTO swept FROM tombstone;
    IF swept IS NULL THEN
        RETURN 0;
    END IF;
    RETURN public.guestd_delete_machine_rows(swept);
END;
$$;

COMMENT ON FUNCTION public.guestd_sweep_deleted_machines() IS
'Deletes the remaining rows of machines with a tombstone, and the tombstones; returns the number of samples deleted.';

CREATE OR REPLACE FUNCTION public.guestd_create_chunk(relation text, at timestamptz) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
BEGIN
    -- Every chunk adds to the planning of every query: refuse chunks far from now.
    IF at IS NULL OR at NOT BETWEEN now() - INTERVAL '1 day' AND now() + INTERVAL '30 days' THEN
        RAISE EXCEPTION 'A chunk is created for a time between a day ago and 30 days ahead, not for %.', at
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A row that is inserted and deleted creates its chunk, also on the Apache edition, which has no create_chunk.
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
'Creates the chunk of a series for a time if it is missing, so that ingest does not have to.';

CREATE OR REPLACE FUNCTION public.guestd_trim_events(keep_days integer, keep_per_machine integer) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total bigint;
    found_rows bigint;
BEGIN
    -- A wrong argument must not delete all rows.
    IF keep_days IS NULL OR keep_days < 1 OR keep_per_machine IS NULL OR keep_per_machine < 1 THEN
        RAISE EXCEPTION 'Events are kept for at least 1 day and at least 1 per machine, not % days and % events.',
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
'Deletes events of guests older than keep_days, and all but the newest keep_per_machine of each machine; returns the number deleted.';

CREATE OR REPLACE FUNCTION public.guestd_trim_ports(keep_per_machine integer) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total bigint;
BEGIN
    -- A wrong argument must not delete all rows.
    IF keep_per_machine IS NULL OR keep_per_machine < 1 THEN
        RAISE EXCEPTION 'At least 1 automatic port per machine is kept, not %.', keep_per_machine
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH crowded AS (
        SELECT port."vmId"
        FROM public."VmPort" AS port
        WHERE port."isAutomatic"
        GROUP BY port."vmId"
        HAVING count(*) > keep_per_machine
    ),
    ranked AS (
        SELECT
            port."id",
            row_number() OVER (
                PARTITION BY port."vmId" ORDER BY port."running" DESC, port."lastSeen" DESC, port."id"
            ) AS place
        FROM public."VmPort" AS port
        INNER JOIN crowded ON crowded."vmId" = port."vmId"
        WHERE port."isAutomatic"
    )
    DELETE FROM public."VmPort" AS port USING ranked
    WHERE port."id" = ranked."id" AND ranked.place > keep_per_machine AND port."isAutomatic" AND NOT port."running";
    GET DIAGNOSTICS total = ROW_COUNT;
    RETURN total;
END;
$$;

COMMENT ON FUNCTION public.guestd_trim_ports(integer) IS
'Deletes automatic rows of VmPort that do not listen, beyond keep_per_machine automatic rows of each machine, the longest silent first; returns the number deleted.';

CREATE OR REPLACE FUNCTION public.guestd_keep_port() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW."isAutomatic" := FALSE;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION public.guestd_keep_port() IS
'A row of VmPort that somebody has changed is no longer removed automatically.';

CREATE OR REPLACE FUNCTION public.guestd_mark_automatic_port() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW."isAutomatic" := TRUE;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION public.guestd_mark_automatic_port() IS
'A new row of VmPort as only guestd adds them is automatic: a guestd from before migration 18 does not say so.';
