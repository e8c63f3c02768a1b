-- Community edition only: chunks that are complete go to the columnstore. Segments by machine; within one in the order in
-- which a process's (port's, program's) rows follow one another, so that a value stands beside those that are like it.

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
