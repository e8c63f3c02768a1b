-- Every object of the schema: kind, name, definition, in reading order. No parameters. Excludes objects of extensions,
-- objects that TimescaleDB adds to a hypertable, and privileges of other roles.
WITH relation AS (
    SELECT
        class.oid,
        class.relname,
        class.relkind,
        class.relacl,
        class.relowner
    FROM pg_catalog.pg_class AS class
    WHERE
        class.relnamespace = 'public'::regnamespace
        AND class.relkind IN ('r', 'v')
        AND NOT EXISTS (
            SELECT 1
            FROM pg_catalog.pg_depend AS dependency
            WHERE
                dependency.classid = 'pg_catalog.pg_class'::regclass
                AND dependency.objid = class.oid
                AND dependency.deptype = 'e'
        )
),

routine AS (
    SELECT
        procedure.oid,
        procedure.proname || '(' || PG_GET_FUNCTION_IDENTITY_ARGUMENTS(procedure.oid) || ')' AS "name",
        COALESCE(procedure.proacl, ACLDEFAULT('f', procedure.proowner)) AS "acl",
        procedure.proowner
    FROM pg_catalog.pg_proc AS procedure
    WHERE procedure.pronamespace = 'public'::regnamespace AND procedure.proname LIKE 'guestd\_%'
),

our_role AS (
    SELECT
        oid,
        rolname
    FROM pg_catalog.pg_roles
    WHERE rolname IN ('guestd_writer', 'guestd_reader')
    UNION ALL
    SELECT
        0 AS "oid",
        'public' AS "rolname"
),

fact AS (
    SELECT
        1 AS "section",
        'table' AS "kind",
        relation.relname::text AS "name",
        0 AS "place",
        'table' AS "definition"
    FROM relation
    WHERE relation.relkind = 'r'
    UNION ALL
    SELECT
        2,
        'hypertable',
        dimension.hypertable_name::text,
        0,
        dimension.column_name || ' in chunks of ' || dimension.time_interval
    FROM timescaledb_information.dimensions AS dimension
    WHERE dimension.hypertable_schema = 'public'
    UNION ALL
    SELECT
        3,
        'view',
        relation.relname,
        0,
        REGEXP_REPLACE(TRIM(PG_GET_VIEWDEF(relation.oid)), '\s+', ' ', 'g')
    FROM relation
    WHERE relation.relkind = 'v'
    UNION ALL
    SELECT
        4,
        'column',
        relation.relname || '.' || attribute.attname,
        attribute.attnum,
        FORMAT_TYPE(attribute.atttypid, attribute.atttypmod)
        || CASE WHEN attribute.attnotnull THEN ' NOT NULL' ELSE '' END
        || COALESCE(' DEFAULT ' || PG_GET_EXPR(fallback.adbin, fallback.adrelid), '')
    FROM relation
    INNER JOIN pg_catalog.pg_attribute AS attribute ON relation.oid = attribute.attrelid
    LEFT JOIN pg_catalog.pg_attrdef AS fallback
        ON attribute.attrelid = fallback.adrelid AND attribute.attnum = fallback.adnum
    WHERE attribute.attnum > 0 AND NOT attribute.attisdropped
    UNION ALL
    SELECT
        5,
        'constraint',
        relation.relname || '.' || rule.conname,
        0,
        PG_GET_CONSTRAINTDEF(rule.oid)
    FROM relation
    INNER JOIN pg_catalog.pg_constraint AS rule ON relation.oid = rule.conrelid
    WHERE rule.contype IN ('p', 'u', 'f', 'c', 'x')
    UNION ALL
    SELECT
        6,
        'index',
        relation.relname || '.' || class.relname,
        0,
        PG_GET_INDEXDEF(index.indexrelid) || CASE WHEN index.indisvalid THEN '' ELSE ' INVALID' END
    FROM relation
    INNER JOIN pg_catalog.pg_index AS index ON relation.oid = index.indrelid
    INNER JOIN pg_catalog.pg_class AS class ON index.indexrelid = class.oid
    WHERE
        NOT EXISTS (
            SELECT 1 FROM pg_catalog.pg_constraint AS rule
            WHERE rule.conindid = index.indexrelid
        )
    UNION ALL
    SELECT
        7,
        'trigger',
        relation.relname || '.' || trigger.tgname,
        0,
        PG_GET_TRIGGERDEF(trigger.oid) || CASE WHEN trigger.tgenabled = 'O' THEN '' ELSE ' NOT ALWAYS ENABLED' END
    FROM relation
    INNER JOIN pg_catalog.pg_trigger AS trigger ON relation.oid = trigger.tgrelid
    WHERE NOT trigger.tgisinternal AND trigger.tgname <> 'ts_insert_blocker'
    UNION ALL
    SELECT
        8,
        'function',
        routine.name,
        0,
        'SHA-256 ' || ENCODE(SHA256(CONVERT_TO(PG_GET_FUNCTIONDEF(routine.oid), 'UTF8')), 'hex')
    FROM routine
    UNION ALL
    SELECT
        9,
        'comment',
        relation.relname || COALESCE('.' || attribute.attname, ''),
        description.objsubid,
        description.description
    FROM relation
    INNER JOIN pg_catalog.pg_description AS description
        ON relation.oid = description.objoid AND description.classoid = 'pg_catalog.pg_class'::regclass
    LEFT JOIN pg_catalog.pg_attribute AS attribute
        ON
            description.objoid = attribute.attrelid AND description.objsubid = attribute.attnum
            AND description.objsubid > 0
    UNION ALL
    SELECT
        10,
        'constraint comment',
        relation.relname || '.' || rule.conname,
        0,
        description.description
    FROM relation
    INNER JOIN pg_catalog.pg_constraint AS rule ON relation.oid = rule.conrelid
    INNER JOIN pg_catalog.pg_description AS description
        ON rule.oid = description.objoid AND description.classoid = 'pg_catalog.pg_constraint'::regclass
    UNION ALL
    SELECT
        11,
        'function comment',
        routine.name,
        0,
        OBJ_DESCRIPTION(routine.oid, 'pg_proc')
    FROM routine
    WHERE OBJ_DESCRIPTION(routine.oid, 'pg_proc') IS NOT NULL
    UNION ALL
    SELECT
        12,
        'privilege',
        our_role.rolname || ' on ' || relation.relname,
        0,
        STRING_AGG(grant_item.privilege_type, ', ' ORDER BY grant_item.privilege_type)
    FROM relation
    CROSS JOIN LATERAL ACLEXPLODE(relation.relacl) AS grant_item
    INNER JOIN our_role ON grant_item.grantee = our_role.oid
    GROUP BY our_role.rolname, relation.relname
    UNION ALL
    SELECT
        13,
        'privilege',
        our_role.rolname || ' on ' || relation.relname || '.' || attribute.attname,
        attribute.attnum,
        STRING_AGG(grant_item.privilege_type, ', ' ORDER BY grant_item.privilege_type)
    FROM relation
    INNER JOIN pg_catalog.pg_attribute AS attribute ON relation.oid = attribute.attrelid
    CROSS JOIN LATERAL ACLEXPLODE(attribute.attacl) AS grant_item
    INNER JOIN our_role ON grant_item.grantee = our_role.oid
    WHERE NOT attribute.attisdropped
    GROUP BY our_role.rolname, relation.relname, attribute.attname, attribute.attnum
    UNION ALL
    SELECT
        14,
        'privilege',
        our_role.rolname || ' on ' || routine.name,
        0,
        STRING_AGG(grant_item.privilege_type, ', ' ORDER BY grant_item.privilege_type)
    FROM routine
    CROSS JOIN LATERAL ACLEXPLODE(routine.acl) AS grant_item
    INNER JOIN our_role ON grant_item.grantee = our_role.oid
    GROUP BY our_role.rolname, routine.name
    UNION ALL
    SELECT
        15,
        'role',
        role.rolname::text,
        0,
        CASE
            WHEN role.rolsuper OR role.rolcreaterole OR role.rolcreatedb OR role.rolbypassrls OR role.rolreplication
                THEN 'more rights than it should have'
            WHEN role.rolcanlogin THEN 'can log in'
            ELSE 'cannot log in'
        END
    FROM pg_catalog.pg_roles AS role
    WHERE role.rolname IN ('guestd_writer', 'guestd_reader')
)

SELECT
    fact.kind,
    fact.name,
    fact.definition
FROM fact
ORDER BY
    fact.section ASC,
    SPLIT_PART(fact.name, '.', 1) COLLATE "C" ASC,
    fact.place ASC,
    fact.name COLLATE "C" ASC;
