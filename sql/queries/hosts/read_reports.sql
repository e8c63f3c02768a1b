-- How often a host has reported. %(host_id)s: uuid. One row: bigint; none if the host's row was deleted.
SELECT "reports"
FROM "Host"
WHERE "id" = %(host_id)s;
