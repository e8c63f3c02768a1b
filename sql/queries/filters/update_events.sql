-- Records the outcomes of actions. %(outcomes)s: jsonb, objects of id and outcome.
UPDATE "ReconcileEvent" AS event SET "outcome" = step."outcome"
FROM jsonb_to_recordset(%(outcomes)s) AS step ("id" uuid, "outcome" text)
WHERE event."id" = step."id";
