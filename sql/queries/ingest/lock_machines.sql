-- Which of these machines exist; keeps them from being deleted until the transaction ends, as a foreign key would.
-- %(ids)s: uuid[]. One row per machine that exists: id. The order makes two writers lock alike.
SELECT "id"
FROM "Machine"
WHERE "id" = ANY(%(ids)s::uuid [])
ORDER BY "id"
FOR KEY SHARE;
