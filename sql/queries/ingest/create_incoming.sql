-- Temporary tables of a session for the inventories of a batch, which are merged from there; every commit empties them.
-- Two statements, no parameters. NOT NULL refuses in COPY what the merge would refuse. Columns: gueststore.contract.
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_application (
    "machineId" uuid NOT NULL,
    "receivedAt" timestamptz (3) NOT NULL,
    "executablePath" text NOT NULL,
    "applicationName" text NOT NULL,
    "version" text,
    "description" text,
    "publisher" text,
    "lastAccessTime" timestamptz (3),
    "lastModifiedTime" timestamptz (3),
    "accessCount" integer NOT NULL,
    "totalUsageMinutes" integer NOT NULL,
    "iconData" bytea,
    "iconFormat" text,
    "fileSize" bigint,
    "isActive" boolean NOT NULL
) ON COMMIT DELETE ROWS;

CREATE TEMPORARY TABLE IF NOT EXISTS incoming_service (
    "machineId" uuid NOT NULL,
    "receivedAt" timestamptz (3) NOT NULL,
    "serviceName" text NOT NULL,
    "displayName" text NOT NULL,
    "description" text,
    "startType" text NOT NULL,
    "serviceType" text NOT NULL,
    "executablePath" text,
    "dependencies" jsonb,
    "currentState" text NOT NULL,
    "processId" integer,
    "isDefaultService" boolean NOT NULL
) ON COMMIT DELETE ROWS;
