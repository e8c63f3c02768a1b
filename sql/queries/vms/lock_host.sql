-- Whether this session is now the only one that reconciles the machines of a host. %(host_id)s: uuid. One row: boolean.
SELECT pg_try_advisory_lock(hashtextextended('guestd host ' || %(host_id)s::uuid, 0));
