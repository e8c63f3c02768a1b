-- Machines that run without reporting, the longest silence first. Rows: id, name, state, since.
SELECT
    "id",
    "name",
    "state",
    "since"
FROM "MachineWithoutData"
ORDER BY "since", "id";
