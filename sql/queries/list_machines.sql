-- Every machine that a channel may belong to: id, and the name of its domain.
SELECT
    "id",
    "internalName"
FROM "Machine"
ORDER BY "id";
