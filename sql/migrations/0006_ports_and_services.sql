-- compat: 1
-- Which ports machines listen on and may be reached on, and which services they may use and provide.

CREATE TABLE "VmPort" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "portStart" integer NOT NULL,
    "portEnd" integer NOT NULL,
    "protocol" text NOT NULL,
    "running" boolean NOT NULL,
    "enabled" boolean NOT NULL,
    "toEnable" boolean NOT NULL,
    "vmId" uuid NOT NULL,
    "lastSeen" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "VmPort_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "VmPort_vmId_portStart_protocol_key" UNIQUE ("vmId", "portStart", "protocol"),
    CONSTRAINT "VmPort_vmId_fkey" FOREIGN KEY ("vmId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "VmPort_portStart_0_to_65535_check" CHECK ("portStart" BETWEEN 0 AND 65535),
    CONSTRAINT "VmPort_portEnd_0_to_65535_check" CHECK ("portEnd" BETWEEN 0 AND 65535),
    CONSTRAINT "VmPort_portStart_not_above_end_check" CHECK ("portStart" <= "portEnd"),
    CONSTRAINT "VmPort_protocol_tcp_or_udp_check" CHECK ("protocol" IN ('tcp', 'udp'))
);

COMMENT ON TABLE "VmPort" IS 'A port, or range of ports, of a machine.';
COMMENT ON COLUMN "VmPort"."id" IS 'Public identifier.';
COMMENT ON COLUMN "VmPort"."portStart" IS 'First port, 0 to 65535.';
COMMENT ON COLUMN "VmPort"."portEnd" IS 'Last port, 0 to 65535; equal to the first for a single port.';
COMMENT ON COLUMN "VmPort"."protocol" IS 'tcp or udp.';
COMMENT ON COLUMN "VmPort"."running" IS 'True while something in the guest listens there.';
COMMENT ON COLUMN "VmPort"."enabled" IS 'True when the firewall lets connections in.';
COMMENT ON COLUMN "VmPort"."toEnable" IS 'True when the next firewall update shall let connections in.';
COMMENT ON COLUMN "VmPort"."vmId" IS 'The machine.';
COMMENT ON COLUMN "VmPort"."lastSeen" IS 'When something was last seen listening there.';
COMMENT ON COLUMN "VmPort"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "VmPort"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';
COMMENT ON CONSTRAINT "VmPort_portStart_0_to_65535_check" ON "VmPort" IS
'The first port is a number from 0 to 65535.';
COMMENT ON CONSTRAINT "VmPort_portEnd_0_to_65535_check" ON "VmPort" IS
'The last port is a number from 0 to 65535.';
COMMENT ON CONSTRAINT "VmPort_portStart_not_above_end_check" ON "VmPort" IS
'The first port is not above the last.';
COMMENT ON CONSTRAINT "VmPort_protocol_tcp_or_udp_check" ON "VmPort" IS
'The protocol of a port is tcp or udp.';

CREATE TABLE "DepartmentServiceConfig" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "departmentId" uuid NOT NULL,
    "serviceId" text NOT NULL,
    "useEnabled" boolean NOT NULL DEFAULT FALSE,
    "provideEnabled" boolean NOT NULL DEFAULT FALSE,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "DepartmentServiceConfig_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "DepartmentServiceConfig_departmentId_serviceId_key" UNIQUE ("departmentId", "serviceId"),
    CONSTRAINT "DepartmentServiceConfig_departmentId_fkey" FOREIGN KEY ("departmentId")
    REFERENCES "Department" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

COMMENT ON TABLE "DepartmentServiceConfig" IS
'Whether the machines of a department may use and provide a service; overrules GlobalServiceConfig.';
COMMENT ON COLUMN "DepartmentServiceConfig"."id" IS 'Public identifier.';
COMMENT ON COLUMN "DepartmentServiceConfig"."departmentId" IS 'The department.';
COMMENT ON COLUMN "DepartmentServiceConfig"."serviceId" IS 'Key of the service in the platform''s list, such as ssh.';
COMMENT ON COLUMN "DepartmentServiceConfig"."useEnabled" IS 'True when machines may connect to such services.';
COMMENT ON COLUMN "DepartmentServiceConfig"."provideEnabled" IS 'True when machines may be connected to.';
COMMENT ON COLUMN "DepartmentServiceConfig"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "DepartmentServiceConfig"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';

CREATE TABLE "VMServiceConfig" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "vmId" uuid NOT NULL,
    "serviceId" text NOT NULL,
    "useEnabled" boolean NOT NULL DEFAULT FALSE,
    "provideEnabled" boolean NOT NULL DEFAULT FALSE,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "VMServiceConfig_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "VMServiceConfig_vmId_serviceId_key" UNIQUE ("vmId", "serviceId"),
    CONSTRAINT "VMServiceConfig_vmId_fkey" FOREIGN KEY ("vmId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

COMMENT ON TABLE "VMServiceConfig" IS
'Whether a machine may use and provide a service; overrules its department and GlobalServiceConfig.';
COMMENT ON COLUMN "VMServiceConfig"."id" IS 'Public identifier.';
COMMENT ON COLUMN "VMServiceConfig"."vmId" IS 'The machine.';
COMMENT ON COLUMN "VMServiceConfig"."serviceId" IS 'Key of the service in the platform''s list, such as ssh.';
COMMENT ON COLUMN "VMServiceConfig"."useEnabled" IS 'True when the machine may connect to such services.';
COMMENT ON COLUMN "VMServiceConfig"."provideEnabled" IS 'True when the machine may be connected to.';
COMMENT ON COLUMN "VMServiceConfig"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "VMServiceConfig"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';

CREATE TABLE "GlobalServiceConfig" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "serviceId" text NOT NULL,
    "useEnabled" boolean NOT NULL DEFAULT TRUE,
    "provideEnabled" boolean NOT NULL DEFAULT FALSE,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "GlobalServiceConfig_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "GlobalServiceConfig_serviceId_key" UNIQUE ("serviceId")
);

COMMENT ON TABLE "GlobalServiceConfig" IS
'Whether machines may use and provide a service when neither they nor their department say.';
COMMENT ON COLUMN "GlobalServiceConfig"."id" IS 'Public identifier.';
COMMENT ON COLUMN "GlobalServiceConfig"."serviceId" IS 'Key of the service in the platform''s list, such as ssh; unique.';
COMMENT ON COLUMN "GlobalServiceConfig"."useEnabled" IS 'True when machines may connect to such services.';
COMMENT ON COLUMN "GlobalServiceConfig"."provideEnabled" IS 'True when machines may be connected to.';
COMMENT ON COLUMN "GlobalServiceConfig"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "GlobalServiceConfig"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';
