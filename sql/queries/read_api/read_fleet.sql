-- The series of the fleet, by the minute or the hour. %(since)s, %(until)s: timestamptz; %(points)s: integer.
SELECT
    "at",
    "machines",
    "cpuUsagePercentAvg" AS cpu_percent,
    "cpuUsagePercentMax" AS cpu_percent_max,
    "usedMemoryKBAvg" AS used_memory_kb
FROM public.guestd_fleet_series(%(since)s, %(until)s, %(points)s);
