-- compat: 1
-- Which addresses a machine may send from: anti-spoofing filters need them, and only an operator may say.

ALTER TABLE "Machine"
ADD COLUMN "allowedIps" text [] NOT NULL DEFAULT '{}';

COMMENT ON COLUMN "Machine"."allowedIps" IS
'IP addresses that the machine may use, set by an operator; without any, anti-spoofing filters do not hold.';
