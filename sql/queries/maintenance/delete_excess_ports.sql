-- Deletes automatic rows of VmPort that do not listen, where a machine has more than %(most)s (integer) automatic rows;
-- the longest silent first. One row: number of rows deleted.
SELECT public.guestd_trim_ports(%(most)s);
