-- Records which host has registered. %(host_id)s: uuid. %(identity)s, %(boot)s: text.
UPDATE "Host"
SET
    "identity" = %(identity)s,
    "boot" = %(boot)s
WHERE "id" = %(host_id)s AND ("identity", "boot") IS DISTINCT FROM (%(identity)s, %(boot)s);
