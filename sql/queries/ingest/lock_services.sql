-- Locks the rows of WindowsService of the machines in incoming_service. No parameters. One row: their number.
-- All rows of these machines, always in one order: two daemons wait for each other and never deadlock, whatever the
-- other adds in between. The next statement then sees what it committed.
SELECT COUNT(*)
FROM (
    SELECT stored."id"
    FROM "WindowsService" AS stored
    WHERE stored."machineId" IN (SELECT incoming."machineId" FROM incoming_service AS incoming)
    ORDER BY stored."machineId", stored."serviceName"
    FOR UPDATE
) AS locked;
