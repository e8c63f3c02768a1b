-- Rolls up at most %(most)s (integer) pending hours of the fleet. One row: their number; 0 when none is pending or
-- another session rolls up.
SELECT public.guestd_roll_up_fleet(%(most)s::integer);
