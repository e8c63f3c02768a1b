-- Deletes the samples that a machine's delete above READ COMMITTED may have missed. One row: how many samples.
SELECT public.guestd_sweep_deleted_machines();
