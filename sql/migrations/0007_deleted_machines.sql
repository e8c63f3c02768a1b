-- compat: 1
-- Tombstones for machines deleted above READ COMMITTED; docs/decisions/0021 says why they are needed.

CREATE TABLE "DeletedMachine" (
    "id" uuid NOT NULL,
    "deletedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "DeletedMachine_pkey" PRIMARY KEY ("id")
);

COMMENT ON TABLE "DeletedMachine" IS
'Machines deleted by a transaction that may not have seen their last samples; guestd_sweep_deleted_machines removes those.';
COMMENT ON COLUMN "DeletedMachine"."id" IS 'What was Machine.id.';
COMMENT ON COLUMN "DeletedMachine"."deletedAt" IS 'When it was deleted, server time.';
