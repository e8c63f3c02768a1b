-- Marks ports of machines as enabled: their filters are installed.
-- %(ports)s: jsonb, objects of machine, protocol, first, last.
UPDATE "VmPort" AS port SET
    "enabled" = TRUE,
    "toEnable" = FALSE
FROM jsonb_to_recordset(%(ports)s) AS opened ("machine" uuid, "protocol" text, "first" integer, "last" integer)
WHERE
    port."toEnable"
    AND port."vmId" = opened."machine"
    AND port."protocol" = opened."protocol"
    AND port."portStart" = opened."first"
    AND port."portEnd" = opened."last";
