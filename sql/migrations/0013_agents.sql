-- compat: 1
-- What each machine's agent speaks; what was wanted when an action was taken, and how often it had been tried.

CREATE TABLE "MachineAgent" (
    "machineId" uuid NOT NULL,
    "dialect" text NOT NULL,
    "changedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "MachineAgent_pkey" PRIMARY KEY ("machineId"),
    CONSTRAINT "MachineAgent_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "MachineAgent_dialect_known_check" CHECK ("dialect" IN ('D0', 'D1', 'D2', 'D3', 'guestd'))
);

COMMENT ON TABLE "MachineAgent" IS 'What is known of the agent in a machine''s guest from its samples.';
COMMENT ON COLUMN "MachineAgent"."machineId" IS 'The machine.';
COMMENT ON COLUMN "MachineAgent"."dialect" IS
'What its last samples were written in: D0, D1, D2, D3 (docs/wire.md), or guestd for numbered lines, which are acknowledged.';
COMMENT ON COLUMN "MachineAgent"."changedAt" IS 'When it began to speak that, server time.';
COMMENT ON CONSTRAINT "MachineAgent_dialect_known_check" ON "MachineAgent" IS
'A dialect is D0, D1, D2, D3 or guestd.';

ALTER TABLE "ReconcileEvent"
ADD COLUMN "desired" text,
ADD COLUMN "attempt" integer;

COMMENT ON COLUMN "ReconcileEvent"."desired" IS 'Machine.desiredStatus that the action is for; NULL for rows.';
COMMENT ON COLUMN "ReconcileEvent"."attempt" IS
'Which such action in a row it is, from 1; from 1 again when something else is wanted. NULL for rows.';
