-- The problems that hosts have with filters: the host's name, the filter's name in libvirt, the problem.
-- %(names)s: text[], names of filters.
SELECT
    host."name" AS "host",
    state."name",
    state."problem"
FROM "FilterHostState" AS state
INNER JOIN "Host" AS host ON state."hostId" = host."id"
WHERE state."name" = ANY(%(names)s) AND state."problem" IS NOT NULL
ORDER BY host."name", state."name";
