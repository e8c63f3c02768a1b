-- The machines of a host by what their agents' ports are like and what the agents speak; those of no host where it is not
-- known. %(name)s, %(uri)s: text. Rows: channel, dialect (each NULL while nothing is known), count.
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
