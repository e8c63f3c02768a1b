-- What a host's libvirt has of these filters. The digest is that of what it was read back to have, or NULL where that is
-- not what the rows say. %(host_id)s: uuid. %(states)s: jsonb, objects of name, uuid, digest, isBound, problem.
INSERT INTO "FilterHostState" ("hostId", "name", "uuid", "digest", "inForceAt", "isBound", "problem")
SELECT
    %(host_id)s,
    seen."name",
    seen."uuid",
    seen."digest",
    CASE WHEN seen."digest" IS NOT NULL THEN now() END,
    seen."isBound",
    seen."problem"
FROM
    jsonb_to_recordset(%(states)s)
        AS seen ("name" text, "uuid" uuid, "digest" text, "isBound" boolean, "problem" text)
ON CONFLICT ("hostId", "name", "uuid") DO UPDATE SET
    "inForceAt" = CASE
        WHEN "FilterHostState"."digest" = excluded."digest" THEN "FilterHostState"."inForceAt"
        ELSE excluded."inForceAt"
    END,
    "digest" = excluded."digest",
    "isBound" = excluded."isBound",
    "problem" = excluded."problem";
