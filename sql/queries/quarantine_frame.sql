-- Sets a frame aside. A second row for the same frame is an error: the ledger should have skipped it.
-- %(machine_id)s: uuid or NULL, %(received_at)s: timestamptz, %(spool_id)s: uuid, %(seq)s: bigint, %(reason)s,
-- %(detail)s: text, %(refusals)s: jsonb array of {table, key, reason}, %(stored)s: boolean, %(payload)s: bytea.
INSERT INTO "QuarantinedFrame" (
    "machineId",
    "receivedAt",
    "spoolId",
    "seq",
    "reason",
    "detail",
    "refusals",
    "stored",
    "payload"
)
VALUES (
    %(machine_id)s,
    %(received_at)s,
    %(spool_id)s,
    %(seq)s,
    %(reason)s,
    %(detail)s,
    %(refusals)s,
    %(stored)s,
    %(payload)s
);
