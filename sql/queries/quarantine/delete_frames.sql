-- Deletes quarantined frames by id, by reason or by age; NULL omits a condition, and at least one must not be NULL.
-- %(ids)s: uuid[], %(reason)s: text, %(older_than)s: timestamptz, by the time of receipt.
DELETE FROM "QuarantinedFrame"
WHERE
    COALESCE("id" = ANY(%(ids)s::uuid []), %(ids)s::uuid [] IS NULL)
    AND COALESCE("reason" = %(reason)s::text, %(reason)s::text IS NULL)
    AND COALESCE("receivedAt" < %(older_than)s::timestamptz, %(older_than)s::timestamptz IS NULL)
    AND NUM_NONNULLS(%(ids)s::uuid [], %(reason)s::text, %(older_than)s::timestamptz) > 0;
