-- compat: 1
-- A reason to quarantine: of the spool's own columns.

COMMENT ON COLUMN "QuarantinedFrame"."reason" IS
'One word of the daemon: identity (claims another machine), json (cannot be read), shape (read, but not a message), spool (the spool has it with a kind or transport that this guestd does not know, or with a value that cannot be), unknown_machine, row_refused (some rows), rejected_by_store (the store refused rows), bug.';
