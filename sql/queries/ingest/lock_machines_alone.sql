-- Locks these machines against every other transaction that asks for the same, until the transaction ends: another host
-- that has the same lines of a migrated machine then finds them stored. %(ids)s: uuid[]. One row per existing machine: id.
-- The order prevents deadlocks of two writers.
SELECT "id"
FROM "Machine"
WHERE "id" = ANY(%(ids)s::uuid [])
ORDER BY "id"
FOR NO KEY UPDATE;
