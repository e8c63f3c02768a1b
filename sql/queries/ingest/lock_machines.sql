-- Locks these machines against deletion until the transaction ends, as a foreign key would. %(ids)s: uuid[].
-- One row per existing machine: id. The order prevents deadlocks of two writers.
SELECT "id"
FROM "Machine"
WHERE "id" = ANY(%(ids)s::uuid [])
ORDER BY "id"
FOR KEY SHARE;
