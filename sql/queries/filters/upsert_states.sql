-- The state of these filters in a host's libvirt. The digest is that of the definition read back from libvirt, or NULL
-- when it differs from the rows. %(host_id)s: uuid. %(states)s: jsonb, objects of name, uuid, digest, isBound, problem.
INSERT INTO "FilterHostState" ("hostId", "name", "uuid", "digest", "inForceAt", "isBound", "problem")
SELECT
    %(host_id)s,
    observed."name",
    observed."uuid",
    observed."digest",
    CASE WHEN observed."digest" IS NOT NULL THEN now() END,
    observed."isBound",
    observed."problem"
FROM
    jsonb_to_recordset(%(states)s)
        AS observed ("name" text, "uuid" uuid, "digest" text, "isBound" boolean, "problem" text)
ON CONFLICT ("hostId", "name", "uuid") DO UPDATE SET
    "inForceAt" = CASE
        WHEN "FilterHostState"."digest" = excluded."digest" THEN "FilterHostState"."inForceAt"
        ELSE excluded."inForceAt"
    END,
    "digest" = excluded."digest",
    "isBound" = excluded."isBound",
    "problem" = excluded."problem";
