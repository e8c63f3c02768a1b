-- Deletes events of guests older than %(keep_days)s and beyond %(keep_per_machine)s, integers. One row: number of
-- events.
SELECT public.guestd_trim_events(%(keep_days)s, %(keep_per_machine)s);
