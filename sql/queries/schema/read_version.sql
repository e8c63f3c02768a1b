-- One row: version (the newest migration, 0 for none) and compat (the oldest version whose programs still work).
-- Fails with undefined_table (42P01) on a database that was never migrated.
SELECT
    COALESCE(MAX("number"), 0) AS "version",
    COALESCE(MAX("compat"), 0) AS "compat"
FROM "SchemaMigration";
