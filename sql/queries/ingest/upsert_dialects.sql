-- The dialects of agents. %(machine_ids)s: uuid[], each once. %(dialects)s: text[], of the same length.
INSERT INTO "MachineAgent" ("machineId", "dialect")
SELECT
    agent."machineId",
    agent."dialect"
FROM unnest(%(machine_ids)s::uuid [], %(dialects)s::text []) AS agent ("machineId", "dialect")
ON CONFLICT ("machineId") DO UPDATE SET
    "dialect" = excluded."dialect",
    "changedAt" = now()
WHERE "MachineAgent"."dialect" <> excluded."dialect";
