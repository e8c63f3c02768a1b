-- compat: 1
-- By what a frame is known again, what an operator may set per machine, and what guests report besides metrics.

ALTER TABLE "SystemMetrics" ADD COLUMN "frameDigest" bigint;
CREATE INDEX "SystemMetrics_machineId_frameDigest_idx" ON "SystemMetrics" ("machineId", "frameDigest");

COMMENT ON COLUMN "SystemMetrics"."frameDigest" IS
'63 bits by which the frame is known when it comes again: of its boot_id and seq, else of its bytes when it carries a time; NULL where neither tells.';

ALTER TABLE "QuarantinedFrame"
ADD COLUMN "frameDigest" bigint,
ADD COLUMN "attempts" integer NOT NULL DEFAULT 0,
ADD CONSTRAINT "QuarantinedFrame_machineId_frameDigest_key" UNIQUE ("machineId", "frameDigest");

COMMENT ON COLUMN "QuarantinedFrame"."frameDigest" IS
'63 bits by which the frame is known when it comes again, so that one that is sent over and over takes one row; NULL where nothing tells.';
COMMENT ON COLUMN "QuarantinedFrame"."attempts" IS 'How often somebody has retried it in vain, count.';

ALTER TABLE "Machine"
ADD COLUMN "commandLines" text,
ADD COLUMN "isCollected" boolean NOT NULL DEFAULT TRUE,
ADD CONSTRAINT "Machine_commandLines_full_redacted_or_off_check" CHECK ("commandLines" IN ('full', 'redacted', 'off'));

COMMENT ON COLUMN "Machine"."commandLines" IS
'How command lines of its processes are stored: full, redacted or off; NULL follows the daemon''s setting.';
COMMENT ON COLUMN "Machine"."isCollected" IS 'False where nothing that the guest reports is to be kept.';
COMMENT ON CONSTRAINT "Machine_commandLines_full_redacted_or_off_check" ON "Machine" IS
'Command lines are stored full, redacted or off.';

CREATE TABLE "GuestEvent" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "machineId" uuid NOT NULL,
    "receivedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "type" text NOT NULL,
    "severity" text,
    "message" text,
    "detail" jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT "GuestEvent_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "GuestEvent_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "GuestEvent_detail_is_an_object_check" CHECK (jsonb_typeof("detail") = 'object')
);

CREATE INDEX "GuestEvent_machineId_receivedAt_idx" ON "GuestEvent" ("machineId", "receivedAt");

COMMENT ON TABLE "GuestEvent" IS 'What a guest''s agent reported besides metrics: errors, connection changes and the like.';
COMMENT ON COLUMN "GuestEvent"."id" IS 'Public identifier.';
COMMENT ON COLUMN "GuestEvent"."machineId" IS 'The machine of the channel.';
COMMENT ON COLUMN "GuestEvent"."receivedAt" IS 'When guestd took the message, host time.';
COMMENT ON COLUMN "GuestEvent"."type" IS 'The message''s type on the wire, such as error_report or connection_status.';
COMMENT ON COLUMN "GuestEvent"."severity" IS 'How bad, in the agent''s word.';
COMMENT ON COLUMN "GuestEvent"."message" IS 'In the agent''s words; the text is a guest''s.';
COMMENT ON COLUMN "GuestEvent"."detail" IS 'Object: whatever else the message told.';
COMMENT ON CONSTRAINT "GuestEvent_detail_is_an_object_check" ON "GuestEvent" IS 'The detail of an event is an object.';
