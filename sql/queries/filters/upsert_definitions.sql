-- guestd is about to define these filters on a host: from now on they are known to be its own.
-- %(host_id)s: uuid. %(filters)s: jsonb, objects of name and uuid.
INSERT INTO "FilterHostState" ("hostId", "name", "uuid", "definedAt")
SELECT
    %(host_id)s,
    filter."name",
    filter."uuid",
    now()
FROM jsonb_to_recordset(%(filters)s) AS filter ("name" text, "uuid" uuid)
ON CONFLICT ("hostId", "name", "uuid") DO UPDATE SET "definedAt" = excluded."definedAt";
