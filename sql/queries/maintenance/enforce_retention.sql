-- Takes from a relation what is older than its setting and rolled up. %(relation)s: text. One row: chunks or rows that went.
SELECT public.guestd_enforce_retention(%(relation)s);
