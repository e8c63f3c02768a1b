-- Records a repeatable script that runs in this transaction: %(name)s, %(checksum)s.
INSERT INTO "SchemaRepeatable" AS stored ("name", "checksum")
VALUES (%(name)s, %(checksum)s)
ON CONFLICT ("name") DO UPDATE SET
    "checksum" = excluded."checksum",
    "appliedAt" = CLOCK_TIMESTAMP();
