-- Waits for the lock to change the filters of a host, and holds it until unlock_filters or the end of the session.
-- %(host_id)s: uuid.
SELECT pg_advisory_lock(hashtextextended('guestd filters ' || %(host_id)s::uuid, 0));
