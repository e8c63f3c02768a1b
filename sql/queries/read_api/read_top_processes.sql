-- The process names that used most CPU. %(machine_ids)s: uuid[], NULL means all machines; %(since)s, %(until)s:
-- timestamptz; %(most)s: integer.
SELECT
    "name",
    "machines",
    "cpuUsagePercent" AS cpu_percent,
    "memoryUsageKB" AS memory_kb
FROM public.guestd_top_processes(%(machine_ids)s, %(since)s, %(until)s, %(most)s);
