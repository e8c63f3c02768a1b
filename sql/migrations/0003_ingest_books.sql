-- compat: 1
-- The daemon's books: how far each spool is stored, and the frames that could not be stored whole.

CREATE TABLE "IngestLedger" (
    "spoolId" uuid NOT NULL,
    "lane" integer NOT NULL,
    "committedSeq" bigint NOT NULL,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "IngestLedger_pkey" PRIMARY KEY ("spoolId", "lane")
);

COMMENT ON TABLE "IngestLedger" IS
'How far each spool is stored; advanced by compare-and-set in the transaction that stores the rows.';
COMMENT ON COLUMN "IngestLedger"."spoolId" IS 'The spool; a fresh UUID for every spool file.';
COMMENT ON COLUMN "IngestLedger"."lane" IS 'The strictly ordered part of the spool, from 0.';
COMMENT ON COLUMN "IngestLedger"."committedSeq" IS
'The highest sequence number stored or quarantined; 0 before the first.';
COMMENT ON COLUMN "IngestLedger"."updatedAt" IS 'When it last advanced, server time.';

CREATE TABLE "QuarantinedFrame" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "machineId" uuid,
    "receivedAt" timestamptz (3) NOT NULL,
    "spoolId" uuid NOT NULL,
    "seq" bigint NOT NULL,
    "reason" text NOT NULL,
    "detail" text NOT NULL,
    "refusals" jsonb NOT NULL DEFAULT '[]',
    "stored" boolean NOT NULL DEFAULT FALSE,
    "payload" bytea NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "QuarantinedFrame_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "QuarantinedFrame_spoolId_seq_key" UNIQUE ("spoolId", "seq")
);

CREATE INDEX "QuarantinedFrame_machineId_receivedAt_idx" ON "QuarantinedFrame" ("machineId", "receivedAt");

COMMENT ON TABLE "QuarantinedFrame" IS
'Frames that were accepted but could not be stored, or only in part; kept whole so that they can be retried.';
COMMENT ON COLUMN "QuarantinedFrame"."id" IS 'Public identifier.';
COMMENT ON COLUMN "QuarantinedFrame"."machineId" IS
'The machine of the channel; no foreign key, for the machine may be unknown or gone.';
COMMENT ON COLUMN "QuarantinedFrame"."receivedAt" IS 'When guestd took the frame, host time.';
COMMENT ON COLUMN "QuarantinedFrame"."spoolId" IS 'The spool it came from.';
COMMENT ON COLUMN "QuarantinedFrame"."seq" IS 'Its sequence number in that spool.';
COMMENT ON COLUMN "QuarantinedFrame"."reason" IS
'One word of the daemon: identity (claims another machine), json (cannot be read), shape (read, but not a message), unknown_machine, row_refused (some rows), rejected_by_store (the store refused rows), bug.';
COMMENT ON COLUMN "QuarantinedFrame"."detail" IS 'What was wrong, in words.';
COMMENT ON COLUMN "QuarantinedFrame"."refusals" IS 'Array of refused rows, each an object: table, key, reason.';
COMMENT ON COLUMN "QuarantinedFrame"."stored" IS 'True when the rest of the frame was stored.';
COMMENT ON COLUMN "QuarantinedFrame"."payload" IS 'The frame as received, bytes.';
COMMENT ON COLUMN "QuarantinedFrame"."createdAt" IS 'When the row was made, server time.';
