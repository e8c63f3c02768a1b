-- Deletes events of guests beyond an age and a number a machine. One row: how many.
SELECT public.guestd_trim_events(%(keep_days)s, %(keep_per_machine)s);
