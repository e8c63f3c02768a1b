-- A person releases a lease, if it still is the one that was shown; one event, and one row if it was. Not while the host
-- reports that the machine runs there: it is assigned to it, and its domain is active.
-- %(machine_id)s, %(host_id)s: uuid. %(taken_at)s: timestamptz. %(name)s, %(reason)s: text.
WITH released AS (
    DELETE FROM "MachineLease" AS lease
    WHERE
        lease."machineId" = %(machine_id)s
        AND lease."hostId" = %(host_id)s
        AND lease."takenAt" = %(taken_at)s::timestamptz
        AND NOT EXISTS (
            SELECT
            FROM "Machine" AS machine
            INNER JOIN "Host" AS host ON machine."hostId" = host."id"
            INNER JOIN "MachineDomain" AS domain ON machine."id" = domain."machineId"
            WHERE
                machine."id" = lease."machineId"
                AND machine."hostId" = lease."hostId"
                AND coalesce(host."reportedAt", host."lastSeen") > now() - INTERVAL '60 seconds'
                AND domain."state" NOT IN ('shutoff', 'missing')
        )
    RETURNING lease."machineId", lease."hostId"
)

INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome")
SELECT
    released."hostId",
    released."machineId",
    %(name)s,
    'release',
    %(reason)s,
    'done'
FROM released;
