-- Every trigger of the schema.

CREATE OR REPLACE TRIGGER "Machine_updatedAt"
BEFORE UPDATE ON "Machine"
FOR EACH ROW EXECUTE FUNCTION public.guestd_touch_updated_at();

CREATE OR REPLACE TRIGGER "Machine_announce"
AFTER INSERT OR DELETE ON "Machine"
FOR EACH STATEMENT EXECUTE FUNCTION public.guestd_announce_machines();
