-- compat: 1
-- What a guest can add to VmPort, WindowsService and ServiceStateHistory has bounds: rows that guestd made are told from
-- those that a person made, and all three have a retention.

ALTER TABLE "VmPort" ADD COLUMN "isAutomatic" boolean NOT NULL DEFAULT FALSE;

COMMENT ON COLUMN "VmPort"."isAutomatic" IS
'True while guestd made the row and nobody has changed its port, enabled or toEnable: it is removed when nothing listens there any more.';

-- guestd sets lastSeen to the time of a sample; a row of a person has the time of its creation until something listens.
UPDATE "VmPort" SET "isAutomatic" = TRUE
WHERE "portStart" = "portEnd" AND NOT "enabled" AND NOT "toEnable" AND "lastSeen" <> "createdAt";

-- Its retention searches by time alone.
CREATE INDEX "ServiceStateHistory_timestamp_idx" ON "ServiceStateHistory" ("timestamp");

ALTER TABLE "RetentionSetting" DROP CONSTRAINT "RetentionSetting_relation_that_is_pruned_check";
ALTER TABLE "RetentionSetting" ADD CONSTRAINT "RetentionSetting_relation_that_is_pruned_check" CHECK (
    "relation" IN (
        'SystemMetrics', 'ProcessSnapshot', 'PortUsage', 'ApplicationUsageHistory', 'SystemMetricsMinute',
        'SystemMetricsHour', 'ProcessUsageHour', 'ApplicationUsageDay', 'ListeningPortDay', 'SystemFleetMinute',
        'ProcessFleetHour', 'ApplicationUsage', 'QuarantinedFrame', 'VmPort', 'WindowsService', 'ServiceStateHistory'
    )
);
COMMENT ON CONSTRAINT "RetentionSetting_relation_that_is_pruned_check" ON "RetentionSetting" IS
'A retention is set for a series, a roll-up, ApplicationUsage, QuarantinedFrame, VmPort, WindowsService or ServiceStateHistory.';
COMMENT ON COLUMN "RetentionSetting"."keepDays" IS
'Age beyond which rows are dropped, days: by timestamp or bucket; of ApplicationUsage those that are not active, by lastSeen; of WindowsService those that their machine no longer lists, by lastSeen; of VmPort automatic rows that do not listen, by lastSeen; of QuarantinedFrame by createdAt.';

INSERT INTO "RetentionSetting" ("relation", "keepDays") VALUES
('VmPort', 30),
('WindowsService', 365),
('ServiceStateHistory', 365);
