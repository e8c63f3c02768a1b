-- Records a migration that runs in this transaction: %(number)s, %(name)s, %(checksum)s, %(body)s, %(compat)s.
INSERT INTO "SchemaMigration" ("number", "name", "checksum", "body", "compat")
VALUES (%(number)s, %(name)s, %(checksum)s, %(body)s, %(compat)s);
