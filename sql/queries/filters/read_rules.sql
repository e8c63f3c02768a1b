-- The rules of filters, for each filter as the text of a JSON list in a fixed order. %(filters)s: uuid[].
SELECT
    rule."nwFilterId",
    jsonb_agg(to_jsonb(rule) ORDER BY rule."id")::text AS "rules"
FROM "FWRule" AS rule
WHERE rule."nwFilterId" = ANY(%(filters)s)
GROUP BY rule."nwFilterId";
