-- Locks the agents of these machines against every other transaction that asks for the same, until the transaction ends:
-- another host that has the same lines of a migrated machine then finds them stored. The rows of Machine stay free: the VM
-- reconciler, which writes them, would skip them, or wait. ON CONFLICT locks a row also where nothing is to be updated.
-- %(machine_ids)s: uuid[], of existing machines, each once and in order, which prevents deadlocks of two writers.
-- %(dialects)s: text[], of the same length, for machines without a row.
INSERT INTO "MachineAgent" ("machineId", "dialect")
SELECT
    agent."machineId",
    agent."dialect"
FROM unnest(%(machine_ids)s::uuid [], %(dialects)s::text []) AS agent ("machineId", "dialect")
ON CONFLICT ("machineId") DO UPDATE SET
    "dialect" = excluded."dialect"
WHERE FALSE;
