-- The other hosts that have not reported their machines for 60 s. A time in the future is of before the server's clock was set
-- back: nobody knows how long ago it was. %(host_id)s: uuid, NULL for none. Rows: name.
SELECT "name"
FROM "Host"
WHERE
    "id" IS DISTINCT FROM %(host_id)s::uuid
    AND coalesce("reportedAt" NOT BETWEEN now() - INTERVAL '60 seconds' AND now() + INTERVAL '5 seconds', TRUE)
ORDER BY "name";
