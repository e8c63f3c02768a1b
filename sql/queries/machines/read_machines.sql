-- Every machine: machine_id, internal_name (of its domain), command_lines (NULL: the host's setting applies),
-- is_collected.
SELECT
    "id" AS "machine_id",
    "internalName" AS "internal_name",
    "commandLines" AS "command_lines",
    "isCollected" AS "is_collected"
FROM "Machine"
ORDER BY "id";
