-- Releases the lock to change the filters of a host. %(host_id)s: uuid.
SELECT pg_advisory_unlock(hashtextextended('guestd filters ' || %(host_id)s::uuid, 0));
