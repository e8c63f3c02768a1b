-- The machines of a host that run without reporting, and since when; machines without a host when the host is unknown.
-- %(name)s, %(uri)s: text. Rows: internalName, seconds since 1970.
SELECT
    silent."internalName",
    extract(EPOCH FROM silent."since")::double precision
FROM "MachineWithoutData" AS silent
WHERE silent."hostId" IS NOT DISTINCT FROM (
    SELECT host."id" FROM "Host" AS host
    WHERE host."name" = %(name)s AND host."uri" = %(uri)s
);
