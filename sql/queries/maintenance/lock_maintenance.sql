-- Whether this transaction got the lock for the maintenance of all machines. One row: boolean.
SELECT pg_try_advisory_xact_lock(hashtextextended('guestd upkeep', 0));
