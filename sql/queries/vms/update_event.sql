-- Records the outcome of an action. %(event_id)s: uuid. %(outcome)s: text.
UPDATE "ReconcileEvent" SET "outcome" = %(outcome)s
WHERE "id" = %(event_id)s;
