-- Compare-and-set: one row, committedSeq, when the ledger was at %(expected_seq)s and its owner was %(expected_owner)s;
-- none when another writer advanced it. %(spool_id)s: uuid, %(lane)s: integer, %(expected_seq)s, %(committed_seq)s:
-- bigint, %(expected_owner)s, %(owner)s: uuid, or NULL of a guestd that wrote none.
UPDATE "IngestLedger"
SET
    "committedSeq" = %(committed_seq)s,
    "owner" = %(owner)s,
    "updatedAt" = CLOCK_TIMESTAMP()
WHERE
    "spoolId" = %(spool_id)s
    AND "lane" = %(lane)s
    AND "committedSeq" = %(expected_seq)s
    AND "owner" IS NOT DISTINCT FROM %(expected_owner)s::uuid
RETURNING "committedSeq";
