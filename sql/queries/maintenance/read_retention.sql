-- What the next retention run drops. Rows: relation, keepDays, cutoff, isHeldBack, due (chunks, or rows of a plain
-- table).
SELECT
    "relation",
    "keepDays" AS keep_days,
    "cutoff",
    "isHeldBack" AS is_held_back,
    "due"
FROM "RetentionDue"
ORDER BY "relation";
