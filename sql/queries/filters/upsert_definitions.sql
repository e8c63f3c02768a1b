-- Records that guestd is about to define these filters on a host, so that they count as its own from now on.
-- %(host_id)s: uuid. %(filters)s: jsonb, objects of name and uuid.
INSERT INTO "FilterHostState" ("hostId", "name", "uuid", "definedAt")
SELECT
    %(host_id)s,
    filter."name",
    filter."uuid",
    now()
FROM jsonb_to_recordset(%(filters)s) AS filter ("name" text, "uuid" uuid)
ON CONFLICT ("hostId", "name", "uuid") DO UPDATE SET "definedAt" = excluded."definedAt";
