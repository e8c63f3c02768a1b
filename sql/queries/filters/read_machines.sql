-- Every machine with its filters. guestd.filters.store reads the columns by name.
-- A policy is [useEnabled, provideEnabled] by serviceId; a port is [protocol, first, last].
SELECT
    machine."id",
    machine."name",
    machine."internalName",
    machine."allowedIps",
    ARRAY(
        SELECT own."nwFilterId" FROM "VMNWFilter" AS own
        WHERE own."vmId" = machine."id"
    ) AS "own",
    ARRAY(
        SELECT theirs."nwFilterId" FROM "DepartmentNWFilter" AS theirs
        WHERE theirs."departmentId" = machine."departmentId"
    ) AS "department",
    coalesce(
        (
            SELECT configuration."cleanTraffic" FROM "DepartmentConfiguration" AS configuration
            WHERE configuration."departmentId" = machine."departmentId"
        ),
        FALSE
    ) AS "isClean",
    (
        SELECT jsonb_object_agg(service."serviceId", jsonb_build_array(service."useEnabled", service."provideEnabled"))
        FROM "VMServiceConfig" AS service
        WHERE service."vmId" = machine."id"
    ) AS "services",
    (
        SELECT jsonb_object_agg(service."serviceId", jsonb_build_array(service."useEnabled", service."provideEnabled"))
        FROM "DepartmentServiceConfig" AS service
        WHERE service."departmentId" = machine."departmentId"
    ) AS "departmentServices",
    coalesce(
        (
            SELECT jsonb_agg(jsonb_build_array(port."protocol", port."portStart", port."portEnd"))
            FROM "VmPort" AS port
            WHERE port."vmId" = machine."id" AND (port."enabled" OR port."toEnable")
        ),
        '[]'
    ) AS "ports"
FROM "Machine" AS machine
ORDER BY machine."id";
