-- The series of a machine. %(machine_id)s: uuid, %(since)s and %(until)s: timestamptz, %(points)s: integer, about the
-- maximum number of rows.
SELECT
    "at",
    "resolution",
    "samples",
    "cpuUsagePercentAvg" AS cpu_percent,
    "cpuUsagePercentMax" AS cpu_percent_max,
    "usedMemoryKBAvg" AS used_memory_kb,
    "totalMemoryKBMax" AS total_memory_kb,
    "diskReadBytesPerSecAvg" AS disk_read_bytes_per_second,
    "diskWriteBytesPerSecAvg" AS disk_write_bytes_per_second,
    "networkReceivedBytesPerSecAvg" AS network_received_bytes_per_second,
    "networkSentBytesPerSecAvg" AS network_sent_bytes_per_second,
    "load1minAvg" AS load
FROM public.guestd_machine_series(%(machine_id)s, %(since)s, %(until)s, %(points)s);
