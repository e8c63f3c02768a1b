-- An operator confirms changes of the desired state, if they have not changed since. %(ids)s: uuid[].
-- %(since)s: timestamptz[], the desiredSince of each. One row per confirmed machine: id.
UPDATE "Machine" AS machine SET "confirmedSince" = machine."desiredSince"
FROM unnest(%(ids)s::uuid [], %(since)s::timestamptz []) AS shown ("id", "since")
WHERE machine."id" = shown."id" AND machine."desiredSince" = shown."since"
RETURNING machine."id";
