-- Creates the current and the next chunk of every series if missing, so that ingest never has to (creating one takes a
-- lock that blocks writers). No parameters; a row per chunk. The steps are the chunk intervals of 0002_metrics.
SELECT public.guestd_create_chunk(series."name", NOW() + step.number * series."chunk_interval")
FROM (
    VALUES
    ('SystemMetrics', INTERVAL '7 days'),
    ('ProcessSnapshot', INTERVAL '1 day'),
    ('PortUsage', INTERVAL '1 day'),
    ('ApplicationUsageHistory', INTERVAL '1 day')
) AS series ("name", "chunk_interval")
CROSS JOIN GENERATE_SERIES(0, 1) AS step (number);
