-- Every machine that a channel may belong to: id, the name of its domain, commandLines (NULL: as the host's setting says),
-- isCollected.
SELECT
    "id",
    "internalName",
    "commandLines",
    "isCollected"
FROM "Machine"
ORDER BY "id";
