-- Sets what a session of our programs relies on, over the settings of the server, the database, the role and the
-- connection string. No parameters. A row for each setting that was changed; insufficient_privilege (42501) where only a
-- superuser may change it. A setting that this server does not have is left out. The third column: change only this value.
SELECT set_config(relied_on."name", relied_on."value", FALSE)
FROM (
    VALUES
    -- The driver reads texts, times, intervals and bytes in these forms only.
    ('client_encoding', 'UTF8', NULL),
    ('DateStyle', 'ISO', NULL),
    ('IntervalStyle', 'postgres', NULL),
    ('TimeZone', 'UTC', NULL),
    ('bytea_output', 'hex', NULL),
    ('extra_float_digits', '1', NULL),
    -- The text NULL in an array that the driver writes means NULL.
    ('array_nulls', 'on', NULL),
    -- Our statements mean the same as when they were tested.
    ('search_path', 'public', NULL),
    ('standard_conforming_strings', 'on', NULL),
    ('transform_null_equals', 'off', NULL),
    ('quote_all_identifiers', 'off', NULL),
    -- Errors are searched for on the web, and read by the doctor, in English. Not every role may set it: see below.
    ('lc_messages', 'C', NULL),
    -- A batch reads the ledger again after it has waited for a lock. Snapshots ask for their own isolation.
    ('default_transaction_isolation', 'read committed', NULL),
    -- The spool deletes a frame after COMMIT: COMMIT waits until it is on this server's disk.
    ('synchronous_commit', 'local', 'off'),
    -- Triggers note what to roll up and notify listeners.
    ('session_replication_role', 'origin', 'replica'),
    -- The programs have deadlines of their own. A lock is waited for less long, so that the error names the cause.
    ('statement_timeout', '0', NULL),
    ('transaction_timeout', '0', NULL),
    ('idle_session_timeout', '0', NULL),
    ('idle_in_transaction_session_timeout', '5min', NULL),
    ('lock_timeout', '20s', NULL)
) AS relied_on ("name", "value", "only")
WHERE
    (relied_on."name" <> 'lc_messages' OR has_parameter_privilege('lc_messages', 'SET'))
    AND current_setting(relied_on."name", TRUE) <> relied_on."value"
    AND coalesce(current_setting(relied_on."name", TRUE) = relied_on."only", TRUE);
