-- A host gives the lease of a machine back: it runs there no longer. %(machine_id)s, %(host_id)s: uuid.
DELETE FROM "MachineLease"
WHERE "machineId" = %(machine_id)s AND "hostId" = %(host_id)s;
