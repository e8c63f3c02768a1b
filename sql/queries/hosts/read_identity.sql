-- Which host has registered under a name, and whether one has leases of an earlier boot. %(host_id)s: uuid.
-- %(boot)s: text, the present boot. One row: name, uri, identity and boot, NULL where none is known, and a boolean.
SELECT
    "name",
    "uri",
    "identity",
    "boot",
    (
        SELECT count(*) > 0
        FROM "MachineLease"
        WHERE "hostId" = %(host_id)s AND "hostBoot" NOT IN ('', %(boot)s)
    )
FROM "Host"
WHERE "id" = %(host_id)s;
