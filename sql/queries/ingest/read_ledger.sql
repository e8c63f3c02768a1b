-- How far a spool's lane is stored, and who advanced it: one row, committedSeq and owner, or none without a ledger. FOR
-- UPDATE waits for a transaction that advances it: its commit may be under way although its connection was lost.
-- %(spool_id)s: uuid, %(lane)s: integer.
SELECT
    "committedSeq",
    "owner"
FROM "IngestLedger"
WHERE "spoolId" = %(spool_id)s AND "lane" = %(lane)s
FOR UPDATE;
