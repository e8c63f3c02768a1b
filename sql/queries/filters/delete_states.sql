-- Deletes the state of filters that a host neither has nor should have. %(host_id)s: uuid. %(filters)s: jsonb, objects
-- of name and uuid.
DELETE FROM "FilterHostState" AS state
USING jsonb_to_recordset(%(filters)s) AS gone ("name" text, "uuid" uuid)
WHERE state."hostId" = %(host_id)s AND state."name" = gone."name" AND state."uuid" = gone."uuid";
