-- Returns the host of a name and URI, and inserts it when it is new. %(name)s, %(uri)s, %(version)s: text. One row: id.
INSERT INTO "Host" ("name", "uri", "version")
VALUES (%(name)s, %(uri)s, %(version)s)
ON CONFLICT ("name", "uri") DO UPDATE SET "version" = excluded."version"
RETURNING "id";
