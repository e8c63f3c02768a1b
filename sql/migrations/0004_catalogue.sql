-- compat: 1
-- What stands around a machine: hosts, configuration, installable applications, commands, notifications.

CREATE TABLE "Node" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "currentRaid" text NOT NULL,
    "nextRaid" text,
    "cpuFlags" jsonb NOT NULL,
    "ram" integer NOT NULL,
    "cores" integer NOT NULL,
    CONSTRAINT "Node_pkey" PRIMARY KEY ("id")
);

COMMENT ON TABLE "Node" IS 'A physical host as the platform knows it.';
COMMENT ON COLUMN "Node"."id" IS 'Public identifier.';
COMMENT ON COLUMN "Node"."name" IS 'Host name.';
COMMENT ON COLUMN "Node"."currentRaid" IS 'RAID level in force.';
COMMENT ON COLUMN "Node"."nextRaid" IS 'RAID level after the next rebuild; NULL means no change.';
COMMENT ON COLUMN "Node"."cpuFlags" IS 'CPU features, as the host reports them.';
COMMENT ON COLUMN "Node"."ram" IS 'Memory, GB.';
COMMENT ON COLUMN "Node"."cores" IS 'CPU cores, count.';

CREATE TABLE "Disk" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "path" text NOT NULL,
    "nodeId" uuid NOT NULL,
    "status" text NOT NULL,
    CONSTRAINT "Disk_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "Disk_nodeId_fkey" FOREIGN KEY ("nodeId")
    REFERENCES "Node" ("id") ON DELETE RESTRICT ON UPDATE CASCADE
);

CREATE INDEX "Disk_nodeId_idx" ON "Disk" ("nodeId");

COMMENT ON TABLE "Disk" IS 'A physical disk of a Node.';
COMMENT ON COLUMN "Disk"."id" IS 'Public identifier.';
COMMENT ON COLUMN "Disk"."path" IS 'Device path on the host.';
COMMENT ON COLUMN "Disk"."nodeId" IS 'The host it is in.';
COMMENT ON COLUMN "Disk"."status" IS 'Free text of the platform.';

CREATE TABLE "MachineConfiguration" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "xml" jsonb,
    "graphicProtocol" text,
    "graphicPort" integer,
    "graphicPassword" text,
    "graphicHost" text,
    "assignedGpuBus" text,
    "machineId" uuid NOT NULL,
    CONSTRAINT "MachineConfiguration_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "MachineConfiguration_machineId_key" UNIQUE ("machineId"),
    CONSTRAINT "MachineConfiguration_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

COMMENT ON TABLE "MachineConfiguration" IS 'How a machine is defined and where its screen can be reached; at most one row each.';
COMMENT ON COLUMN "MachineConfiguration"."id" IS 'Public identifier.';
COMMENT ON COLUMN "MachineConfiguration"."xml" IS 'Definition of the libvirt domain, as JSON.';
COMMENT ON COLUMN "MachineConfiguration"."graphicProtocol" IS 'spice or vnc.';
COMMENT ON COLUMN "MachineConfiguration"."graphicPort" IS 'TCP port of the screen; -1 while the machine has none.';
COMMENT ON COLUMN "MachineConfiguration"."graphicPassword" IS 'Password of the screen; hidden from guestd_reader.';
COMMENT ON COLUMN "MachineConfiguration"."graphicHost" IS 'Address of the screen.';
COMMENT ON COLUMN "MachineConfiguration"."assignedGpuBus" IS 'PCI address of the GPU that was assigned.';
COMMENT ON COLUMN "MachineConfiguration"."machineId" IS 'The machine.';

CREATE TABLE "DepartmentConfiguration" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "departmentId" uuid NOT NULL,
    "cleanTraffic" boolean NOT NULL DEFAULT FALSE,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "DepartmentConfiguration_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "DepartmentConfiguration_departmentId_key" UNIQUE ("departmentId"),
    CONSTRAINT "DepartmentConfiguration_departmentId_fkey" FOREIGN KEY ("departmentId")
    REFERENCES "Department" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

COMMENT ON TABLE "DepartmentConfiguration" IS 'Settings of a department; at most one row each.';
COMMENT ON COLUMN "DepartmentConfiguration"."id" IS 'Public identifier.';
COMMENT ON COLUMN "DepartmentConfiguration"."departmentId" IS 'The department.';
COMMENT ON COLUMN "DepartmentConfiguration"."cleanTraffic" IS 'True to apply anti-spoofing to its machines.';
COMMENT ON COLUMN "DepartmentConfiguration"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "DepartmentConfiguration"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';

CREATE TABLE "Application" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "description" text,
    "version" text,
    "url" text,
    "icon" text,
    "os" text [] NOT NULL DEFAULT '{}',
    "installCommand" jsonb NOT NULL,
    "parameters" jsonb NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "Application_pkey" PRIMARY KEY ("id")
);

COMMENT ON TABLE "Application" IS 'A program that the platform can install on machines.';
COMMENT ON COLUMN "Application"."id" IS 'Public identifier.';
COMMENT ON COLUMN "Application"."name" IS 'Name for people.';
COMMENT ON COLUMN "Application"."description" IS 'What it does.';
COMMENT ON COLUMN "Application"."version" IS 'Version that is installed; NULL means the newest.';
COMMENT ON COLUMN "Application"."url" IS 'Its home page.';
COMMENT ON COLUMN "Application"."icon" IS 'Path or address of its icon.';
COMMENT ON COLUMN "Application"."os" IS 'Operating systems it runs on: windows, ubuntu, fedora.';
COMMENT ON COLUMN "Application"."installCommand" IS 'Object: operating system to the command that installs it there.';
COMMENT ON COLUMN "Application"."parameters" IS 'Object: parameters of the command with their meaning.';
COMMENT ON COLUMN "Application"."createdAt" IS 'When the row was made, server time.';

CREATE TABLE "MachineApplication" (
    "machineId" uuid NOT NULL,
    "applicationId" uuid NOT NULL,
    "parameters" jsonb NOT NULL,
    CONSTRAINT "MachineApplication_pkey" PRIMARY KEY ("machineId", "applicationId"),
    CONSTRAINT "MachineApplication_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "MachineApplication_applicationId_fkey" FOREIGN KEY ("applicationId")
    REFERENCES "Application" ("id") ON DELETE RESTRICT ON UPDATE CASCADE
);

CREATE INDEX "MachineApplication_applicationId_idx" ON "MachineApplication" ("applicationId");

COMMENT ON TABLE "MachineApplication" IS 'An application installed on a machine by the platform.';
COMMENT ON COLUMN "MachineApplication"."machineId" IS 'The machine.';
COMMENT ON COLUMN "MachineApplication"."applicationId" IS 'The application.';
COMMENT ON COLUMN "MachineApplication"."parameters" IS 'Object: the parameters it was installed with.';

CREATE TABLE "PendingCommand" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "machineId" uuid NOT NULL,
    "command" text NOT NULL,
    "parameters" jsonb NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "PendingCommand_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "PendingCommand_machineId_fkey" FOREIGN KEY ("machineId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE INDEX "PendingCommand_machineId_idx" ON "PendingCommand" ("machineId");

COMMENT ON TABLE "PendingCommand" IS 'A command that waits for its machine.';
COMMENT ON COLUMN "PendingCommand"."id" IS 'Public identifier.';
COMMENT ON COLUMN "PendingCommand"."machineId" IS 'The machine.';
COMMENT ON COLUMN "PendingCommand"."command" IS 'Name of the command.';
COMMENT ON COLUMN "PendingCommand"."parameters" IS 'Object: parameters of the command.';
COMMENT ON COLUMN "PendingCommand"."createdAt" IS 'When the row was made, server time.';

CREATE TABLE "Notification" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "message" text,
    CONSTRAINT "Notification_pkey" PRIMARY KEY ("id")
);

COMMENT ON TABLE "Notification" IS 'A message of the platform to its users.';
COMMENT ON COLUMN "Notification"."id" IS 'Public identifier.';
COMMENT ON COLUMN "Notification"."message" IS 'The text.';
