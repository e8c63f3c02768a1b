-- Marks a minute for roll-up: rows were added to a stored message. %(machine_id)s: uuid, %(at)s: timestamptz of its
-- sample.
SELECT public.guestd_note_pending_of(%(machine_id)s, %(at)s);
