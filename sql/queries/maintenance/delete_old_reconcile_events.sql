-- Events of the VM loop are kept for 90 days.
DELETE FROM "ReconcileEvent"
WHERE "occurredAt" < now() - INTERVAL '90 days';
