-- compat: 1
-- The reasons for which a frame is quarantined, complete.

COMMENT ON COLUMN "QuarantinedFrame"."reason" IS
'One word of the daemon: identity (claims another machine), json (cannot be read), shape (read, but not a message), unknown_machine, row_refused (some rows), rejected_by_store (the store refused rows), spool (its row of the spool file cannot be read), bug.';
