-- The rules of filters, for each filter as the text of a JSON list in a fixed order. %(filters)s: uuid[].
-- A rule's state is a text of its own: it is anybody's JSON, and what cannot be read of it concerns only its rule.
SELECT
    rule."nwFilterId",
    jsonb_agg(to_jsonb(rule) || jsonb_build_object('state', rule."state"::text) ORDER BY rule."id")::text AS "rules"
FROM "FWRule" AS rule
WHERE rule."nwFilterId" = ANY(%(filters)s)
GROUP BY rule."nwFilterId";
