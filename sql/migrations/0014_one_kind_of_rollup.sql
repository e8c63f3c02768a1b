-- compat: 1
-- Roll-ups are kept in one way on both editions (docs/decisions/0046), so nothing says which way it is.

ALTER TABLE "RollupState" DROP COLUMN "continuousFrom";
