-- Every filter with its rules, as the text of a JSON list in one order, and the ids of those that it includes. The
-- columns are guestd.filterstore's, in its order.
SELECT
    filter."id",
    filter."name",
    filter."internalName",
    filter."uuid",
    filter."chain",
    filter."priority",
    filter."stateMatch",
    coalesce(
        (
            SELECT jsonb_agg(to_jsonb(rule) ORDER BY rule."id") FROM "FWRule" AS rule
            WHERE rule."nwFilterId" = filter."id"
        ), '[]'
    )::text AS "rules",
    ARRAY(
        SELECT reference."targetFilterId" FROM "FilterReference" AS reference
        WHERE reference."sourceFilterId" = filter."id"
        ORDER BY reference."targetFilterId"
    ) AS "targets"
FROM "NWFilter" AS filter
ORDER BY filter."internalName";
