-- Records a retry that did not store everything. %(id)s: uuid, %(reason)s, %(detail)s: text, %(refusals)s: jsonb array,
-- %(stored)s: boolean, whether some of it is stored now.
UPDATE "QuarantinedFrame"
SET
    "attempts" = "attempts" + 1,
    "reason" = %(reason)s,
    "detail" = %(detail)s,
    "refusals" = %(refusals)s,
    "stored" = "stored" OR %(stored)s
WHERE "id" = %(id)s;
