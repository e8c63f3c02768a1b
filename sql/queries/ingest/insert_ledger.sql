-- Inserts the ledger of a spool's lane; an existing one stays unchanged.
-- %(spool_id)s: uuid, %(lane)s: integer, %(committed_seq)s: bigint.
INSERT INTO "IngestLedger" ("spoolId", "lane", "committedSeq")
VALUES (%(spool_id)s, %(lane)s, %(committed_seq)s)
ON CONFLICT ("spoolId", "lane") DO NOTHING;
