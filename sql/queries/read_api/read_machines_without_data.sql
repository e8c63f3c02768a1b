-- Machines that run and have no data. Rows: id, name, state, since; the longest first.
SELECT
    "id",
    "name",
    "state",
    "since"
FROM "MachineWithoutData"
ORDER BY "since", "id";
