-- Whether this database has pg_stat_statements and can read it. One row: boolean.
SELECT coalesce(
    to_regclass('pg_stat_statements') IS NOT NULL
    AND 'pg_stat_statements' = ANY(string_to_array(
        replace(current_setting('shared_preload_libraries', TRUE), ' ', ''), ','
    )),
    FALSE
);
