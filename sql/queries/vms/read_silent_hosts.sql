-- The other hosts whose libvirt has not answered for 60 s. %(host_id)s: uuid, NULL for none. Rows: name.
SELECT "name"
FROM "Host"
WHERE
    "id" IS DISTINCT FROM %(host_id)s::uuid
    AND coalesce("lastSeen" < now() - INTERVAL '60 seconds', TRUE)
ORDER BY "name";
