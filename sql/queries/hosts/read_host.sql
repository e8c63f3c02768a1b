-- The host of a name and URI, if one is registered. %(name)s, %(uri)s: text. One row or none: id.
SELECT "id"
FROM "Host"
WHERE "name" = %(name)s AND "uri" = %(uri)s;
