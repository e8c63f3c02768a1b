-- Counts a report of a host, whose libvirt has answered, unless the store has fewer than the expected ones: it went back.
-- %(host_id)s: uuid. %(expected)s: bigint. %(known)s: bigint, the new number is above it. A row, if so: reports.
UPDATE "Host"
SET
    "lastSeen" = now(),
    "reportedAt" = now(),
    "reports" = greatest("reports", %(known)s::bigint) + 1
WHERE "id" = %(host_id)s AND "reports" >= %(expected)s::bigint
RETURNING "reports";
