-- Locks a quarantined frame for a retry, until the end of the transaction. %(id)s: uuid.
SELECT "id"
FROM "QuarantinedFrame"
WHERE "id" = %(id)s
FOR UPDATE;
