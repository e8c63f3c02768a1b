-- Records that libvirt on a host has answered. %(host_id)s: uuid.
UPDATE "Host" SET "lastSeen" = now()
WHERE "id" = %(host_id)s;
