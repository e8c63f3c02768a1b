-- compat: 1
-- A period that the roll-ups cannot compute waits by itself: it stopped all periods of its kind.

ALTER TABLE "RollupPending" ADD COLUMN "retryAt" timestamptz (3);
ALTER TABLE "RollupPending" ADD COLUMN "error" text;

COMMENT ON COLUMN "RollupPending"."retryAt" IS
'Not computed again before it, because computing it has failed; NULL: as soon as it is closed.';
COMMENT ON COLUMN "RollupPending"."error" IS 'Why computing it has failed; NULL when it has not.';
