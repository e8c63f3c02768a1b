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
