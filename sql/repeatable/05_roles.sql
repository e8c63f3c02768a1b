-- Roles belong to the whole server: a migration of another database may create them at the same moment. The second
-- session finds the role, or waits for the first one and gets a duplicate error. Both mean that the role exists.

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
