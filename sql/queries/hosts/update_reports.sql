-- Records that libvirt on a host has answered, if no report was made or lost since the expected one. %(host_id)s: uuid.
-- %(expected)s, %(reports)s: bigint, the number of reports until now, and the new one. A row, if so: id.
UPDATE "Host"
SET
    "lastSeen" = now(),
    "reports" = %(reports)s
WHERE "id" = %(host_id)s AND "reports" = %(expected)s
RETURNING "id";
