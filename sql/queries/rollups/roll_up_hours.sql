-- Rolls up hours that wait; %(most)s: integer, of machines at once. One row: how many were; 0 when nothing is left or
-- another session is at it.
SELECT public.guestd_roll_up_hours(%(most)s::integer);
