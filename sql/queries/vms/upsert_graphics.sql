-- The address of a machine's graphical console, while the host holds the machine. %(machine_id)s, %(host_id)s: uuid.
-- %(protocol)s, %(graphic_host)s: text, may be NULL. %(port)s: integer.
INSERT INTO "MachineConfiguration" ("machineId", "graphicProtocol", "graphicPort", "graphicHost")
SELECT
    machine."id",
    %(protocol)s,
    %(port)s,
    %(graphic_host)s
FROM "Machine" AS machine
WHERE machine."id" = %(machine_id)s AND machine."hostId" = %(host_id)s
FOR KEY SHARE SKIP LOCKED
ON CONFLICT ("machineId") DO UPDATE SET
    "graphicProtocol" = excluded."graphicProtocol",
    "graphicPort" = excluded."graphicPort",
    "graphicHost" = excluded."graphicHost";
