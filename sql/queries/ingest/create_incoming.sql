-- Temporary tables of a session for the inventories of a batch, which are merged from there; every commit empties them.
-- Two statements, no parameters. NOT NULL refuses in COPY what the merge would refuse. Columns: gueststore.contract.
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_application (
    %(incoming_application_columns)s
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS incoming_service (
    %(incoming_service_columns)s
) ON COMMIT DELETE ROWS;
