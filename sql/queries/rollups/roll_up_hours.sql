-- Rolls up at most %(most)s (integer) pending hours of machines. One row: their number; 0 when none is pending or
-- another session rolls up.
SELECT public.guestd_roll_up_hours(%(most)s::integer);
