-- compat: 1
-- Who owns a machine, what it is made from, where it belongs, and the machine itself.

CREATE TABLE "User" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "email" text NOT NULL,
    "password" text NOT NULL,
    "deleted" boolean NOT NULL,
    "token" text NOT NULL DEFAULT 'null',
    "firstName" text NOT NULL,
    "lastName" text NOT NULL,
    "avatar" text,
    "role" text NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "User_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "User_email_key" UNIQUE ("email"),
    CONSTRAINT "User_password_is_bcrypt_check" CHECK (
        "password" ~ '^\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}$'
    )
);

COMMENT ON TABLE "User" IS 'A person who may sign in to the platform.';
COMMENT ON COLUMN "User"."id" IS 'Public identifier.';
COMMENT ON COLUMN "User"."email" IS 'Sign-in name; unique, deleted users included.';
COMMENT ON COLUMN "User"."password" IS 'bcrypt hash, never the password; hidden from guestd_reader.';
COMMENT ON COLUMN "User"."deleted" IS 'True for a user who left: the row stays, the user may no longer sign in.';
COMMENT ON COLUMN "User"."token" IS
'Session token of the platform; the four letters null mean none. Hidden from guestd_reader.';
COMMENT ON COLUMN "User"."firstName" IS 'Given name.';
COMMENT ON COLUMN "User"."lastName" IS 'Family name.';
COMMENT ON COLUMN "User"."avatar" IS 'Path or address of the profile picture.';
COMMENT ON COLUMN "User"."role" IS 'Free text; the platform writes ADMIN, USER and, later, SUPER_ADMIN.';
COMMENT ON COLUMN "User"."createdAt" IS 'When the row was made, server time.';
COMMENT ON CONSTRAINT "User_password_is_bcrypt_check" ON "User" IS
'A password is stored only as a bcrypt hash: $2a$, $2b$ or $2y$, a cost of 04 to 31, 53 characters.';

CREATE TABLE "Department" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "internetSpeed" integer,
    "ipSubnet" text,
    CONSTRAINT "Department_pkey" PRIMARY KEY ("id")
);

COMMENT ON TABLE "Department" IS 'A tenant: groups machines and carries their common filters and services.';
COMMENT ON COLUMN "Department"."id" IS 'Public identifier.';
COMMENT ON COLUMN "Department"."name" IS 'Name for people; not unique.';
COMMENT ON COLUMN "Department"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "Department"."internetSpeed" IS 'Bandwidth, Mbit/s; NULL means not limited.';
COMMENT ON COLUMN "Department"."ipSubnet" IS 'Subnet of the department in CIDR notation.';

CREATE TABLE "MachineTemplateCategory" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "description" text,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "MachineTemplateCategory_pkey" PRIMARY KEY ("id")
);

COMMENT ON TABLE "MachineTemplateCategory" IS 'A shelf for machine templates.';
COMMENT ON COLUMN "MachineTemplateCategory"."id" IS 'Public identifier.';
COMMENT ON COLUMN "MachineTemplateCategory"."name" IS 'Name for people.';
COMMENT ON COLUMN "MachineTemplateCategory"."description" IS 'What belongs on this shelf.';
COMMENT ON COLUMN "MachineTemplateCategory"."createdAt" IS 'When the row was made, server time.';

CREATE TABLE "MachineTemplate" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "description" text,
    "cores" integer NOT NULL,
    "ram" integer NOT NULL,
    "storage" integer NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "categoryId" uuid,
    CONSTRAINT "MachineTemplate_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "MachineTemplate_categoryId_fkey" FOREIGN KEY ("categoryId")
    REFERENCES "MachineTemplateCategory" ("id") ON DELETE SET NULL ON UPDATE CASCADE
);

CREATE INDEX "MachineTemplate_categoryId_idx" ON "MachineTemplate" ("categoryId");

COMMENT ON TABLE "MachineTemplate" IS 'The blueprint from which machines are made.';
COMMENT ON COLUMN "MachineTemplate"."id" IS 'Public identifier.';
COMMENT ON COLUMN "MachineTemplate"."name" IS 'Name for people.';
COMMENT ON COLUMN "MachineTemplate"."description" IS 'What the template is for.';
COMMENT ON COLUMN "MachineTemplate"."cores" IS 'Virtual CPUs, count.';
COMMENT ON COLUMN "MachineTemplate"."ram" IS 'Memory, GB.';
COMMENT ON COLUMN "MachineTemplate"."storage" IS 'Disk, GB.';
COMMENT ON COLUMN "MachineTemplate"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "MachineTemplate"."categoryId" IS 'The shelf it stands on.';

CREATE TABLE "Machine" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "internalName" text NOT NULL,
    "status" text NOT NULL,
    "userId" uuid,
    "templateId" uuid NOT NULL,
    "os" text NOT NULL,
    "cpuCores" integer NOT NULL DEFAULT 0,
    "ramGB" integer NOT NULL DEFAULT 0,
    "diskSizeGB" integer NOT NULL DEFAULT 0,
    "gpuPciAddress" text,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "departmentId" uuid,
    CONSTRAINT "Machine_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "Machine_internalName_key" UNIQUE ("internalName"),
    CONSTRAINT "Machine_userId_fkey" FOREIGN KEY ("userId")
    REFERENCES "User" ("id") ON DELETE SET NULL ON UPDATE CASCADE,
    CONSTRAINT "Machine_templateId_fkey" FOREIGN KEY ("templateId")
    REFERENCES "MachineTemplate" ("id") ON DELETE RESTRICT ON UPDATE CASCADE,
    CONSTRAINT "Machine_departmentId_fkey" FOREIGN KEY ("departmentId")
    REFERENCES "Department" ("id") ON DELETE SET NULL ON UPDATE CASCADE
);

CREATE INDEX "Machine_userId_idx" ON "Machine" ("userId");
CREATE INDEX "Machine_templateId_idx" ON "Machine" ("templateId");
CREATE INDEX "Machine_departmentId_idx" ON "Machine" ("departmentId");

COMMENT ON TABLE "Machine" IS 'A virtual machine.';
COMMENT ON COLUMN "Machine"."id" IS 'Public identifier; also names the agent''s socket.';
COMMENT ON COLUMN "Machine"."name" IS 'Name for people; not unique.';
COMMENT ON COLUMN "Machine"."internalName" IS 'Name of the libvirt domain; unique.';
COMMENT ON COLUMN "Machine"."status" IS
'Free text; running, off, suspended, error, and transitional words such as building or updating_hardware.';
COMMENT ON COLUMN "Machine"."userId" IS 'Its owner; NULL means unassigned.';
COMMENT ON COLUMN "Machine"."templateId" IS 'The template it was made from.';
COMMENT ON COLUMN "Machine"."os" IS 'Operating system, as the platform names it.';
COMMENT ON COLUMN "Machine"."cpuCores" IS 'Virtual CPUs, count.';
COMMENT ON COLUMN "Machine"."ramGB" IS 'Memory, GB.';
COMMENT ON COLUMN "Machine"."diskSizeGB" IS 'Main disk, GB.';
COMMENT ON COLUMN "Machine"."gpuPciAddress" IS 'PCI address of a passed-through GPU, such as 0000:01:00.0.';
COMMENT ON COLUMN "Machine"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "Machine"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';
COMMENT ON COLUMN "Machine"."departmentId" IS 'The department it belongs to.';
