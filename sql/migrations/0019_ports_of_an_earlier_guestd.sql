-- compat: 1
-- An earlier guestd that still runs after migration 18 adds its ports without saying that they are automatic. Of new rows
-- the trigger VmPort_mark_automatic says it; these are the rows that were added before there was one.

UPDATE "VmPort" AS port SET "isAutomatic" = TRUE
FROM "SchemaMigration" AS applied
WHERE
    applied."number" = 18
    AND port."createdAt" >= applied."appliedAt"
    AND port."portStart" = port."portEnd"
    AND NOT port."enabled"
    AND NOT port."toEnable"
    AND port."lastSeen" <> port."createdAt";

COMMENT ON COLUMN "QuarantinedFrame"."reason" IS
'One word of the daemon: identity (claims another machine), json (cannot be read), shape (read, but not a message), unknown_machine, row_refused (some rows), rejected_by_store (the store refused rows), spool (its row of the spool file cannot be read), bug.';
