-- The migrations that this database has run, in order. Rows: number, name, checksum, compat.
SELECT
    "number",
    "name",
    "checksum",
    "compat"
FROM "SchemaMigration"
ORDER BY "number";
