-- Quarantines a frame; no row when another writer has quarantined the same frame of the machine meanwhile.
-- A second row with the same spoolId and seq is an error: the ledger should have skipped it.
-- %(machine_id)s: uuid or NULL, %(received_at)s: timestamptz, %(spool_id)s: uuid, %(seq)s: bigint, %(reason)s,
-- %(detail)s: text, %(refusals)s: jsonb array of {table, key, reason}, %(stored)s: boolean, %(payload)s: bytea,
-- %(digest)s: bigint or NULL.
INSERT INTO "QuarantinedFrame" (
    "machineId",
    "receivedAt",
    "spoolId",
    "seq",
    "reason",
    "detail",
    "refusals",
    "stored",
    "payload",
    "frameDigest"
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
    %(payload)s,
    %(digest)s
)
ON CONFLICT ON CONSTRAINT "QuarantinedFrame_machineId_frameDigest_key" DO NOTHING;
