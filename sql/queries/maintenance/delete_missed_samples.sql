-- Deletes the samples that the deletion of a machine above READ COMMITTED may have missed. One row: number of samples.
SELECT public.guestd_sweep_deleted_machines();
