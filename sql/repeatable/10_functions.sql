-- Functions that triggers call. Each is whole and current here; a change is applied by the next migrate.

CREATE OR REPLACE FUNCTION public.guestd_touch_updated_at() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A client that sends updatedAt with every update (Prisma does) is overruled: the column says when the
    -- content changed, and having been applied to libvirt (flushedAt) is no change of content.
    IF to_jsonb(NEW) - 'updatedAt' - 'flushedAt' IS DISTINCT FROM to_jsonb(OLD) - 'updatedAt' - 'flushedAt' THEN
        NEW."updatedAt" := clock_timestamp();
    ELSE
        NEW."updatedAt" := OLD."updatedAt";
    END IF;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION public.guestd_touch_updated_at() IS
'Keeps updatedAt: server time of the last change other than to flushedAt.';

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
