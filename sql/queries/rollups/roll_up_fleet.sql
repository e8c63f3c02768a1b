-- Adds up hours of the fleet that wait; %(most)s: integer, of hours at once. One row: how many were; 0 when nothing is left
-- or another session is at it.
SELECT public.guestd_roll_up_fleet(%(most)s::integer);
