-- Views that people and the platform query.

CREATE OR REPLACE VIEW "ActiveUser" AS
SELECT
    "id",
    "email",
    "firstName",
    "lastName",
    "avatar",
    "role",
    "createdAt"
FROM "User"
WHERE NOT "deleted";

COMMENT ON VIEW "ActiveUser" IS 'The users who may sign in, without their secrets.';
COMMENT ON COLUMN "ActiveUser"."id" IS 'User.id.';
COMMENT ON COLUMN "ActiveUser"."email" IS 'Sign-in name.';
COMMENT ON COLUMN "ActiveUser"."firstName" IS 'Given name.';
COMMENT ON COLUMN "ActiveUser"."lastName" IS 'Family name.';
COMMENT ON COLUMN "ActiveUser"."avatar" IS 'Path or address of the profile picture.';
COMMENT ON COLUMN "ActiveUser"."role" IS 'Free text; the platform writes ADMIN, USER and, later, SUPER_ADMIN.';
COMMENT ON COLUMN "ActiveUser"."createdAt" IS 'When the row was made, server time.';
