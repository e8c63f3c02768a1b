-- Every trigger of the schema.

CREATE OR REPLACE TRIGGER "Machine_updatedAt"
BEFORE UPDATE ON "Machine"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "DepartmentConfiguration_updatedAt"
BEFORE UPDATE ON "DepartmentConfiguration"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "NWFilter_updatedAt"
BEFORE UPDATE ON "NWFilter"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "FWRule_updatedAt"
BEFORE UPDATE ON "FWRule"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "DepartmentNWFilter_updatedAt"
BEFORE UPDATE ON "DepartmentNWFilter"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "VMNWFilter_updatedAt"
BEFORE UPDATE ON "VMNWFilter"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "VmPort_updatedAt"
BEFORE UPDATE ON "VmPort"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "DepartmentServiceConfig_updatedAt"
BEFORE UPDATE ON "DepartmentServiceConfig"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "VMServiceConfig_updatedAt"
BEFORE UPDATE ON "VMServiceConfig"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "GlobalServiceConfig_updatedAt"
BEFORE UPDATE ON "GlobalServiceConfig"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "Machine_announce"
AFTER INSERT OR DELETE OR UPDATE OF "commandLines", "isCollected" ON "Machine"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_machines();

CREATE OR REPLACE TRIGGER "Machine_desired_since"
BEFORE INSERT OR UPDATE OF "desiredStatus", "desiredSince" ON "Machine"
FOR EACH ROW EXECUTE FUNCTION public.guestd_keep_desired_since();

CREATE OR REPLACE TRIGGER "Machine_announce_wish"
AFTER INSERT OR DELETE OR UPDATE OF "desiredStatus", "internalName", "confirmedSince" ON "Machine"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_wishes();

CREATE OR REPLACE TRIGGER "Machine_announce_filters"
AFTER INSERT OR DELETE OR UPDATE OF "name", "internalName", "departmentId", "allowedIps" ON "Machine"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "DepartmentConfiguration_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "DepartmentConfiguration"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "NWFilter_announce_filters"
AFTER INSERT OR DELETE OR UPDATE OF
"name", "internalName", "uuid", "chain", "priority", "stateMatch" ON "NWFilter"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "FWRule_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "FWRule"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "FilterReference_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "FilterReference"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "DepartmentNWFilter_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "DepartmentNWFilter"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "VMNWFilter_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "VMNWFilter"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "DepartmentServiceConfig_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "DepartmentServiceConfig"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "VMServiceConfig_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "VMServiceConfig"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "GlobalServiceConfig_announce_filters"
AFTER INSERT OR DELETE OR UPDATE ON "GlobalServiceConfig"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_filters();

-- For each row: most writes only record which ports guests listen on, and the filters do not depend on those.
CREATE OR REPLACE TRIGGER "VmPort_announce_filters_insert"
AFTER INSERT ON "VmPort"
FOR EACH ROW WHEN (new."enabled" OR new."toEnable") EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "VmPort_announce_filters_update"
AFTER UPDATE OF "vmId", "portStart", "portEnd", "protocol", "enabled", "toEnable" ON "VmPort"
FOR EACH ROW WHEN (old."enabled" OR old."toEnable" OR new."enabled" OR new."toEnable")
EXECUTE FUNCTION public.guestd_announce_filters();

CREATE OR REPLACE TRIGGER "VmPort_announce_filters_delete"
AFTER DELETE ON "VmPort"
FOR EACH ROW WHEN (old."enabled" OR old."toEnable") EXECUTE FUNCTION public.guestd_announce_filters();

-- It listens, opens nothing, and was seen before there was a row: people have no reason to add such a row.
CREATE OR REPLACE TRIGGER "VmPort_mark_automatic"
BEFORE INSERT ON "VmPort"
FOR EACH ROW WHEN (
    new."running" AND NOT new."enabled" AND NOT new."toEnable"
    AND new."portStart" = new."portEnd" AND new."lastSeen" < new."createdAt"
)
EXECUTE FUNCTION public.guestd_mark_automatic_port();

CREATE OR REPLACE TRIGGER "VmPort_keep"
BEFORE UPDATE OF "vmId", "portStart", "portEnd", "protocol", "enabled", "toEnable" ON "VmPort"
FOR EACH ROW WHEN (
    old."vmId" IS DISTINCT FROM new."vmId"
    OR old."portStart" IS DISTINCT FROM new."portStart"
    OR old."portEnd" IS DISTINCT FROM new."portEnd"
    OR old."protocol" IS DISTINCT FROM new."protocol"
    OR old."enabled" IS DISTINCT FROM new."enabled"
    OR old."toEnable" IS DISTINCT FROM new."toEnable"
)
EXECUTE FUNCTION public.guestd_keep_port();

CREATE OR REPLACE TRIGGER "Machine_keep_id"
BEFORE UPDATE OF "id" ON "Machine"
FOR EACH ROW WHEN (old."id" <> new."id") EXECUTE FUNCTION public.guestd_keep_machine_id();

CREATE OR REPLACE TRIGGER "Machine_delete_samples"
AFTER DELETE ON "Machine"
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_delete_samples();

CREATE OR REPLACE TRIGGER "Machine_truncate_samples"
AFTER TRUNCATE ON "Machine"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_truncate_samples();

CREATE OR REPLACE TRIGGER "User_end_session"
BEFORE INSERT OR UPDATE ON "User"
FOR EACH ROW WHEN (new."deleted" AND new."token" <> 'null') EXECUTE FUNCTION public.guestd_end_session();

CREATE OR REPLACE TRIGGER "SystemMetrics_note_pending"
AFTER INSERT ON "SystemMetrics"
REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_note_pending();

CREATE OR REPLACE TRIGGER "RollupState_updatedAt"
BEFORE UPDATE ON "RollupState"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "RetentionSetting_updatedAt"
BEFORE UPDATE ON "RetentionSetting"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();
