-- Inserts the ledger of a spool's lane: one row, committedSeq; none, and no change, when it exists.
-- %(spool_id)s: uuid, %(lane)s: integer, %(committed_seq)s: bigint, %(owner)s: uuid.
INSERT INTO "IngestLedger" ("spoolId", "lane", "committedSeq", "owner")
VALUES (%(spool_id)s, %(lane)s, %(committed_seq)s, %(owner)s)
ON CONFLICT ("spoolId", "lane") DO NOTHING
RETURNING "committedSeq";
