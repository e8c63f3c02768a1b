-- Notes that rows were added to a message that was there before. %(machine_id)s: uuid, %(at)s: timestamptz, its sample's.
SELECT public.guestd_note_pending_of(%(machine_id)s, %(at)s);
