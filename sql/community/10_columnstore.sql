-- Community edition only: complete chunks are moved to the columnstore. Segments are by machine; within a segment the rows
-- of one process (port, program) follow each other, so that similar values are adjacent and compress well.

ALTER TABLE "ProcessSnapshot" SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = '"machineId"',
    timescaledb.compress_orderby = '"processId", "timestamp" DESC'
);
SELECT add_compression_policy('"ProcessSnapshot"', INTERVAL '2 days', if_not_exists => TRUE);

ALTER TABLE "PortUsage" SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = '"machineId"',
    timescaledb.compress_orderby = '"ordinal", "timestamp" DESC'
);
SELECT add_compression_policy('"PortUsage"', INTERVAL '2 days', if_not_exists => TRUE);

ALTER TABLE "ApplicationUsageHistory" SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = '"machineId"',
    timescaledb.compress_orderby = '"executablePath", "timestamp" DESC'
);
SELECT add_compression_policy('"ApplicationUsageHistory"', INTERVAL '2 days', if_not_exists => TRUE);

ALTER TABLE "SystemMetrics" SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = '"machineId"',
    timescaledb.compress_orderby = '"timestamp" DESC, "id"'
);
SELECT add_compression_policy('"SystemMetrics"', INTERVAL '14 days', if_not_exists => TRUE);
