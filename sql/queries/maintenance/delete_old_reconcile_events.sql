-- Deletes reconcile events after 90 days.
DELETE FROM "ReconcileEvent"
WHERE "occurredAt" < now() - INTERVAL '90 days';
