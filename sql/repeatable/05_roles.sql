-- Roles belong to the whole server, so another database's migration may make them at the same moment: whoever comes
-- second finds the role, or waits for the first and then finds the name taken. Both are as good as having made it.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'guestd_writer') THEN
        CREATE ROLE guestd_writer NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END;
$$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'guestd_reader') THEN
        CREATE ROLE guestd_reader NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END;
$$;
