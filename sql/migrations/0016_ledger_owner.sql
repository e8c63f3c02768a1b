-- compat: 1
-- Who advances the ledger of a spool: copies of one spool file, as on a cloned host, have the same spool id.

ALTER TABLE "IngestLedger" ADD COLUMN "owner" uuid;

COMMENT ON COLUMN "IngestLedger"."owner" IS
'The opening of the spool file that advanced it last: a fresh UUID for every start of guestd; NULL before guestd wrote one.';

-- A spool that continues under a new id brings frames again that nothing else identifies.
COMMENT ON COLUMN "SystemMetrics"."frameDigest" IS
'63 bits by which the frame is known when it comes again: of its boot_id and seq, else of its bytes when it carries a time, else of its place in its spool. NULL before guestd wrote the last.';
COMMENT ON COLUMN "QuarantinedFrame"."frameDigest" IS
'63 bits by which the frame is known when it comes again, so that one that is sent over and over takes one row; NULL for an event.';
