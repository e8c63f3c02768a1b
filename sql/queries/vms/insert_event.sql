-- Records that an action on a domain begins, and counts it as a report of the host; a start takes the machine's lease
-- with it. One row: id, reports.
-- %(host_id)s, %(machine_id)s, %(domain_uuid)s: uuid. %(name)s, %(action)s, %(reason)s, %(desired)s, %(host_boot)s: text.
-- %(desired_since)s: timestamptz, may be NULL. %(attempt)s: integer. %(statuses)s: text[], in which guestd may act.
-- %(known)s: bigint, reports that the store has if it did not go back.
-- No row when the action must not run: the store went back, the host no longer holds the machine, it has another domain now, its desired state
-- has changed, another program works on it, or another host has its lease.
-- Waits, within lock_timeout, for whoever changes the row.
WITH due AS (
    SELECT machine."id"
    FROM "Machine" AS machine
    WHERE
        machine."id" = %(machine_id)s
        AND machine."hostId" = %(host_id)s
        AND machine."internalName" = %(name)s
        AND machine."desiredStatus" = %(desired)s
        AND machine."desiredSince" IS NOT DISTINCT FROM %(desired_since)s::timestamptz
        AND machine."status" = ANY(%(statuses)s::text [])
    FOR SHARE
),

counted AS (
    UPDATE "Host" AS host SET "reports" = host."reports" + 1
    FROM due
    WHERE host."id" = %(host_id)s AND host."reports" >= %(known)s::bigint
    RETURNING host."reports"
),

lease AS (
    INSERT INTO "MachineLease" ("machineId", "hostId", "hostBoot", "domainUuid")
    SELECT
        due."id",
        %(host_id)s,
        %(host_boot)s,
        %(domain_uuid)s
    FROM due
    CROSS JOIN counted
    WHERE %(action)s::text = 'start'
    ON CONFLICT ("machineId") DO UPDATE
        SET
            "hostBoot" = excluded."hostBoot",
            "domainUuid" = excluded."domainUuid",
            "takenAt" = now()
        WHERE "MachineLease"."hostId" = excluded."hostId"
    RETURNING "machineId"
)

INSERT INTO "ReconcileEvent" ("hostId", "machineId", "name", "action", "reason", "outcome", "desired", "attempt")
SELECT
    %(host_id)s,
    due."id",
    %(name)s,
    %(action)s,
    %(reason)s,
    'begun',
    %(desired)s,
    %(attempt)s::integer
FROM due
CROSS JOIN counted
WHERE %(action)s::text <> 'start' OR EXISTS (SELECT FROM lease)
RETURNING "id", (SELECT "reports" FROM counted);
