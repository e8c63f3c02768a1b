-- Deletes reconcile events after 90 days, except holds of changes that still wait for a confirmation.
DELETE FROM "ReconcileEvent" AS event
WHERE
    event."occurredAt" < now() - INTERVAL '90 days'
    AND NOT EXISTS (
        SELECT
        FROM "Machine" AS machine
        WHERE
            machine."id" = event."machineId"
            AND machine."desiredSince" <= event."occurredAt"
            AND event."action" = 'hold'
            AND event."outcome" IN ('held', 'restored')
    );
