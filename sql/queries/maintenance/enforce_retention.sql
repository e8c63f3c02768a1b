-- Drops data of a relation past its retention that has been rolled up. %(relation)s: text. One row: chunks or rows
-- dropped.
SELECT public.guestd_enforce_retention(%(relation)s);
