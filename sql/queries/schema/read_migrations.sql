-- What this database has run: number, name, checksum, compat, in order.
SELECT
    "number",
    "name",
    "checksum",
    "compat"
FROM "SchemaMigration"
ORDER BY "number";
