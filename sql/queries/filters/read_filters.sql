-- Every filter, what changes whenever one of its rules does, and the ids of those that it includes. The columns are
-- guestd.filters.store's, in its order. The rules themselves are many, and asked for where this is new: a version of a row
-- is known by its transaction.
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
