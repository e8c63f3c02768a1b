-- Every filter with a version of its rules and the ids of the filters that it includes. guestd.filters.store reads the
-- columns by name. The rules are many: filters/read_rules reads those of filters with a new version.
-- The version is a hash of the rules' ids and transactions (xmin).
SELECT
    filter."id",
    filter."name",
    filter."internalName",
    filter."uuid",
    filter."chain",
    filter."priority",
    filter."stateMatch",
    (
        SELECT hashtextextended(string_agg(rule."id"::text || rule.xmin::text, ',' ORDER BY rule."id"), 0)
        FROM "FWRule" AS rule
        WHERE rule."nwFilterId" = filter."id"
    ) AS "version",
    ARRAY(
        SELECT reference."targetFilterId" FROM "FilterReference" AS reference
        WHERE reference."sourceFilterId" = filter."id"
        ORDER BY reference."targetFilterId"
    ) AS "targets"
FROM "NWFilter" AS filter
ORDER BY filter."internalName";
