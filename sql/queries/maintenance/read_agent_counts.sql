-- Counts the machines of a host by state of the agent's channel and dialect; machines without a host when the host is
-- unknown. %(name)s, %(uri)s: text. Rows: channel, dialect (each NULL while unknown), count.
SELECT
    machine."channel",
    machine."dialect",
    count(*)
FROM "MachineState" AS machine
WHERE
    machine."hostId" IS NOT DISTINCT FROM (
        SELECT host."id" FROM "Host" AS host
        WHERE host."name" = %(name)s AND host."uri" = %(uri)s
    )
GROUP BY machine."channel", machine."dialect";
