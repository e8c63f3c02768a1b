-- How far a spool's lane is stored: one row, committedSeq, or none when its books are not open. A transaction that is
-- moving them is waited for: its commit may be under way though its connection was lost.
-- %(spool_id)s: uuid, %(lane)s: integer.
SELECT "committedSeq"
FROM "IngestLedger"
WHERE "spoolId" = %(spool_id)s AND "lane" = %(lane)s
FOR UPDATE;
