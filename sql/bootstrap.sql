-- The tables that record the migrations. Applied before all migrations of this folder, idempotently.

CREATE TABLE IF NOT EXISTS "SchemaMigration" (
    "number" integer NOT NULL,
    "name" text NOT NULL,
    "checksum" text NOT NULL,
    "body" text NOT NULL,
    "compat" integer NOT NULL,
    "appliedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "SchemaMigration_pkey" PRIMARY KEY ("number")
);

COMMENT ON TABLE "SchemaMigration" IS 'One row per migration that this database has run, in order.';
COMMENT ON COLUMN "SchemaMigration"."number" IS 'The number in front of the file name; the highest is the schema version.';
COMMENT ON COLUMN "SchemaMigration"."name" IS 'The file name without its number and suffix.';
COMMENT ON COLUMN "SchemaMigration"."checksum" IS 'SHA-256 of the body, hex; an edited migration is refused.';
COMMENT ON COLUMN "SchemaMigration"."body" IS 'The SQL as it ran.';
COMMENT ON COLUMN "SchemaMigration"."compat" IS
'The oldest schema version whose programs still work on this database; older ones refuse to start.';
COMMENT ON COLUMN "SchemaMigration"."appliedAt" IS 'When it ran, server time.';

CREATE TABLE IF NOT EXISTS "SchemaRepeatable" (
    "name" text NOT NULL,
    "checksum" text NOT NULL,
    "appliedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "SchemaRepeatable_pkey" PRIMARY KEY ("name")
);

COMMENT ON TABLE "SchemaRepeatable" IS
'One row per repeatable script (functions, triggers, views, grants), run again whenever its text changes.';
COMMENT ON COLUMN "SchemaRepeatable"."name" IS 'The file name without its suffix.';
COMMENT ON COLUMN "SchemaRepeatable"."checksum" IS 'SHA-256 of the text that ran last, hex.';
COMMENT ON COLUMN "SchemaRepeatable"."appliedAt" IS 'When it ran last, server time.';
