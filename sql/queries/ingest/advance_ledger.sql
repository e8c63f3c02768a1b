-- Compare-and-set: one row, committedSeq, when the ledger was at %(expected_seq)s; none when another writer advanced
-- it. %(spool_id)s: uuid, %(lane)s: integer, %(expected_seq)s, %(committed_seq)s: bigint.
UPDATE "IngestLedger"
SET
    "committedSeq" = %(committed_seq)s,
    "updatedAt" = CLOCK_TIMESTAMP()
WHERE "spoolId" = %(spool_id)s AND "lane" = %(lane)s AND "committedSeq" = %(expected_seq)s
RETURNING "committedSeq";
