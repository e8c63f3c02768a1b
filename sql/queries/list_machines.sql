-- Every machine that a channel may belong to: id, name.
SELECT
    "id",
    "name"
FROM "Machine"
ORDER BY "id";
