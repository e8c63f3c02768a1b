-- The privileges of the roles: the least that their work needs. The roles cannot log in; grant them to the login roles of
-- the daemon and of Grafana. A migration revokes a privilege.

-- The daemon. FOR KEY SHARE requires UPDATE of one column of Machine; the trigger keeps the value of updatedAt.
GRANT SELECT, INSERT ON "SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsageHistory" TO guestd_writer;
GRANT SELECT, INSERT, UPDATE ON "ApplicationUsage", "WindowsService", "IngestLedger" TO guestd_writer;
GRANT SELECT, INSERT ON "ServiceStateHistory" TO guestd_writer;
GRANT SELECT, INSERT, DELETE ON "GuestEvent" TO guestd_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON "QuarantinedFrame" TO guestd_writer;
GRANT SELECT ON "Machine", "SchemaMigration", "SchemaRepeatable", "DeletedMachine" TO guestd_writer;
GRANT UPDATE ("updatedAt", "status", "hostId", "confirmedSince") ON "Machine" TO guestd_writer;
GRANT SELECT, INSERT, UPDATE ON "Host", "MachineDomain", "MachineAgent", "VmPort" TO guestd_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON "MachineLease" TO guestd_writer;
GRANT SELECT, INSERT, DELETE ON "ReconcileEvent" TO guestd_writer;
GRANT UPDATE ("outcome") ON "ReconcileEvent" TO guestd_writer;
GRANT SELECT ("id", "machineId", "graphicProtocol", "graphicPort", "graphicHost"),
INSERT ("machineId", "graphicProtocol", "graphicPort", "graphicHost"),
UPDATE ("graphicProtocol", "graphicPort", "graphicHost") ON "MachineConfiguration" TO guestd_writer;
GRANT SELECT ON "MachineState", "MachineWithoutData" TO guestd_writer;
-- Functions with the owner's rights write roll-ups and enforce retention; the daemon only reads these tables.
GRANT SELECT ON
"RetentionSetting",
"RetentionDue",
"RollupPending",
"RollupState"
TO guestd_writer;
GRANT SELECT ON "NWFilter", "FilterReference", "FWRule", "DepartmentNWFilter", "VMNWFilter" TO guestd_writer;
GRANT SELECT ON "DepartmentServiceConfig", "VMServiceConfig", "GlobalServiceConfig" TO guestd_writer;
GRANT SELECT ("departmentId", "cleanTraffic") ON "DepartmentConfiguration" TO guestd_writer;
GRANT UPDATE ("flushedAt", "problem") ON "NWFilter" TO guestd_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON "FilterHostState" TO guestd_writer;

-- Readers: everything except passwords, tokens and the raw frames of guests, which may contain secrets of a guest.
GRANT SELECT ON
"Node",
"Disk",
"Department",
"DepartmentConfiguration",
"MachineTemplateCategory",
"MachineTemplate",
"Machine",
"Host",
"MachineDomain",
"MachineAgent",
"MachineLease",
"ReconcileEvent",
"FilterHostState",
"MachineState",
"MachineWithoutData",
"Application",
"MachineApplication",
"PendingCommand",
"Notification",
"NWFilter",
"FilterReference",
"FWRule",
"DepartmentNWFilter",
"VMNWFilter",
"VmPort",
"DepartmentServiceConfig",
"VMServiceConfig",
"GlobalServiceConfig",
"SystemMetrics",
"ProcessSnapshot",
"PortUsage",
"ApplicationUsageHistory",
"ApplicationUsage",
"WindowsService",
"ServiceStateHistory",
"GuestEvent",
"IngestLedger",
"SchemaMigration",
"SchemaRepeatable",
"DeletedMachine",
"RetentionSetting",
"RollupPending",
"RollupState",
"SystemMetricsMinute",
"SystemMetricsHour",
"ProcessUsageHour",
"ApplicationUsageDay",
"ListeningPortDay",
"SystemFleetMinute",
"ProcessFleetHour",
"SystemFleet_1m",
"SystemMetrics_1m",
"SystemMetrics_1h",
"ProcessUsage_1h",
"ApplicationUsage_1d",
"ListeningPort_1d",
"RetentionDue",
"MachineLatest",
"ListeningPort",
"ApplicationUse",
"StateChange",
"ActiveUser"
TO guestd_reader;

GRANT SELECT (
    "id",
    "email",
    "deleted",
    "firstName",
    "lastName",
    "avatar",
    "role",
    "createdAt"
) ON "User" TO guestd_reader;

GRANT SELECT (
    "id",
    "graphicProtocol",
    "graphicPort",
    "graphicHost",
    "assignedGpuBus",
    "machineId"
) ON "MachineConfiguration" TO guestd_reader;

GRANT SELECT (
    "id",
    "machineId",
    "receivedAt",
    "spoolId",
    "seq",
    "reason",
    "detail",
    "refusals",
    "stored",
    "createdAt",
    "frameDigest",
    "attempts"
) ON "QuarantinedFrame" TO guestd_reader;

-- Only the daemon may call functions with the owner's rights; nobody calls trigger functions and internal ones.
REVOKE ALL ON FUNCTION
public.guestd_touch_updated_at(),
public.guestd_announce_machines(),
public.guestd_announce_wishes(),
public.guestd_keep_desired_since(),
public.guestd_announce_filters(),
public.guestd_keep_machine_id(),
public.guestd_keep_port(),
public.guestd_mark_automatic_port(),
public.guestd_end_session(),
public.guestd_machine_tables(),
public.guestd_delete_machine_rows(uuid []),
public.guestd_delete_samples(),
public.guestd_truncate_samples(),
public.guestd_sweep_deleted_machines(),
public.guestd_create_chunk(text, timestamptz),
public.guestd_trim_events(integer, integer),
public.guestd_trim_ports(integer),
public.guestd_note_pending_of(uuid, timestamptz),
public.guestd_roll_up_minutes(integer),
public.guestd_roll_up_hours(integer),
public.guestd_roll_up_fleet(integer),
public.guestd_enforce_retention(text),
public.guestd_note_pending(),
public.guestd_take_pending(text, timestamptz, integer),
public.guestd_compute_minutes(uuid [], timestamptz []),
public.guestd_compute_hours(uuid [], timestamptz []),
public.guestd_compute_fleet(timestamptz []),
public.guestd_compute_each(text, uuid [], timestamptz []),
public.guestd_roll_up_system_hours(uuid [], timestamptz []),
public.guestd_roll_up_process_hours(uuid [], timestamptz []),
public.guestd_day_rows_kept(),
public.guestd_roll_up_days(uuid [], timestamptz []),
public.guestd_trim_days(uuid [], timestamptz []),
public.guestd_note_fleet(timestamptz []),
public.guestd_note_fleet_of(uuid []),
public.guestd_roll_up_fleet_minutes(timestamptz []),
public.guestd_advance_rollup(text, timestamptz),
public.guestd_bounded(double precision),
public.guestd_bounded(numeric),
public.guestd_process_names_kept(),
public.guestd_process_usage(uuid, timestamptz, timestamptz),
public.guestd_sum_of(jsonb, text),
public.guestd_number_of(jsonb, text),
public.guestd_system_metrics_between(uuid, timestamptz, timestamptz),
public.guestd_covered_until(text),
public.guestd_resolution(timestamptz, timestamptz, integer),
public.guestd_machine_series(uuid, timestamptz, timestamptz, integer),
public.guestd_top_processes(uuid [], timestamptz, timestamptz, integer),
public.guestd_process_series(uuid, timestamptz, timestamptz, integer),
public.guestd_fleet_series(timestamptz, timestamptz, integer)
FROM public;
GRANT EXECUTE ON FUNCTION
public.guestd_sweep_deleted_machines(),
public.guestd_create_chunk(text, timestamptz),
public.guestd_trim_events(integer, integer),
public.guestd_trim_ports(integer),
public.guestd_note_pending_of(uuid, timestamptz),
public.guestd_roll_up_minutes(integer),
public.guestd_roll_up_hours(integer),
public.guestd_roll_up_fleet(integer),
public.guestd_enforce_retention(text)
TO guestd_writer;
-- Functions that only read are for readers as well.
GRANT EXECUTE ON FUNCTION
public.guestd_bounded(double precision),
public.guestd_bounded(numeric),
public.guestd_process_names_kept(),
public.guestd_process_usage(uuid, timestamptz, timestamptz),
public.guestd_sum_of(jsonb, text),
public.guestd_number_of(jsonb, text),
public.guestd_system_metrics_between(uuid, timestamptz, timestamptz),
public.guestd_covered_until(text),
public.guestd_resolution(timestamptz, timestamptz, integer),
public.guestd_machine_series(uuid, timestamptz, timestamptz, integer),
public.guestd_top_processes(uuid [], timestamptz, timestamptz, integer),
public.guestd_process_series(uuid, timestamptz, timestamptz, integer),
public.guestd_fleet_series(timestamptz, timestamptz, integer)
TO guestd_writer, guestd_reader;
