-- Every machine: id, the name of its domain, commandLines (NULL: the host's setting applies), isCollected.
SELECT
    "id",
    "internalName",
    "commandLines",
    "isCollected"
FROM "Machine"
ORDER BY "id";
