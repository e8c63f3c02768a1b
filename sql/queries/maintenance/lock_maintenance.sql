-- Whether this transaction is the only one that does the upkeep of all machines just now. One row: boolean.
SELECT pg_try_advisory_xact_lock(hashtextextended('guestd upkeep', 0));
