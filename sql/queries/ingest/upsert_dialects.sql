-- What agents speak. %(machine_ids)s: uuid[], each once. %(dialects)s: text[], of the same length.
INSERT INTO "MachineAgent" ("machineId", "dialect")
SELECT
    spoken."machineId",
    spoken."dialect"
FROM unnest(%(machine_ids)s::uuid [], %(dialects)s::text []) AS spoken ("machineId", "dialect")
ON CONFLICT ("machineId") DO UPDATE SET
    "dialect" = excluded."dialect",
    "changedAt" = now()
WHERE "MachineAgent"."dialect" <> excluded."dialect";
